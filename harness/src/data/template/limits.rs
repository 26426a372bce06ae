//! Limits of a template: bytes read, bytes made, bytes written, lists made, time.
//!
//! Fuel bounds the instructions; this bounds what each of them handles. A budget belongs to the
//! thread that renders, from [`within`] until it returns. Filters, tests and methods that can be
//! slow or can grow ask it before they begin and tell it what they made; `compile.rs` leads
//! operators through it. The limits grow with the conversation, so that a long one is as legal as a
//! short one, and lie far above what templates in use need.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, filters, functions, tests};

/// Filters that `compile.rs` writes; a template cannot name them.
pub(super) const MADE: &str = "karat:made";
pub(super) const SHALLOW: &str = "karat:shallow";
pub(super) const DEEP: &str = "karat:deep";
pub(super) const SLICED: &str = "karat:sliced";
pub(super) const SEARCHED: &str = "karat:searched";
pub(super) const TEXT: &str = "karat:text";

/// Most items of a list that is handled as a whole.
const ITEMS: usize = 1_000_000;
/// Deepest nesting of a value that is printed, compared or searched.
const DEPTH: usize = 256;
/// What an item costs beside its text, in bytes.
const ITEM_BYTES: u64 = 32;
/// What a slice of a slice costs, in bytes.
const PART_OF_PART: usize = 512 << 10;
/// What every question costs, so that their number is bounded too.
const CALL: u64 = 16;
/// Far beyond what the other limits take; for what they do not see.
const TIME: Duration = Duration::from_secs(15);

/// How much a rendering may do.
#[derive(Clone, Copy)]
pub(super) struct Allowance {
    /// Bytes read and made, over all.
    work: u64,
    /// Bytes of texts and lists made, over all.
    made: u64,
    /// Bytes written, to the output or into variables.
    written: u64,
    /// Bytes of the largest text.
    text: u64,
    /// Lists and maps made: each may hold the one before, and freeing such a chain takes stack.
    built: u64,
}

impl Allowance {
    /// For a conversation of `input` bytes in `turns` turns, on whatever thread calls: freeing a
    /// chain of so few lists needs half a MiB of stack.
    pub(super) fn of(input: usize, turns: usize) -> Self {
        let (input, turns) = (input as u64, turns as u64);
        Allowance {
            work: (512 << 20) + 256 * input + turns * 4 * PART_OF_PART as u64,
            made: (96 << 20) + 16 * input,
            // What is written will be tokenized, at up to a hundred times its size.
            written: (4 << 20) + 8 * input,
            text: (12 << 20) + 4 * input,
            built: 2_000,
        }
    }

    /// The same with room for more lists, on a thread with [`STACK`].
    pub(super) fn with_many_lists(self, turns: usize) -> Self {
        Allowance { built: (20_000 + 64 * turns as u64).min(200_000), ..self }
    }
}

/// The stack that [`Allowance::with_many_lists`] needs.
pub(super) const STACK: usize = 128 << 20;

struct Budget {
    work: Cell<u64>,
    made: Cell<u64>,
    written: Cell<u64>,
    text: Cell<u64>,
    built: Cell<u64>,
    many_lists: Cell<bool>,
    questions: Cell<u32>,
    end: Cell<Option<Instant>>,
}

thread_local! {
    static BUDGET: Budget = const {
        Budget {
            work: Cell::new(u64::MAX),
            made: Cell::new(u64::MAX),
            written: Cell::new(u64::MAX),
            text: Cell::new(u64::MAX),
            built: Cell::new(u64::MAX),
            many_lists: Cell::new(false),
            questions: Cell::new(0),
            end: Cell::new(None),
        }
    };
}

impl Budget {
    fn set(&self, allowed: Allowance, end: Option<Instant>) {
        self.work.set(allowed.work);
        self.made.set(allowed.made);
        self.written.set(allowed.written);
        self.text.set(allowed.text);
        self.built.set(allowed.built);
        self.many_lists.set(false);
        self.questions.set(0);
        self.end.set(end);
    }
}

/// Gives everything back when a rendering ends, however it ends.
struct Unlimited;

impl Drop for Unlimited {
    fn drop(&mut self) {
        let all = Allowance { work: u64::MAX, made: u64::MAX, written: u64::MAX, text: u64::MAX, built: u64::MAX };
        BUDGET.with(|b| b.set(all, None));
    }
}

/// Runs `render` with a budget. The flag says whether it was refused for the number of lists alone.
pub(super) fn within<T>(allowed: Allowance, render: impl FnOnce() -> T) -> (T, bool) {
    BUDGET.with(|b| b.set(allowed, Some(Instant::now() + TIME)));
    let _reset = Unlimited;
    let result = render();
    (result, BUDGET.with(|b| b.many_lists.get()))
}

fn too(what: &str) -> Error {
    Error::new(ErrorKind::OutOfFuel, format!("it {what}; stopped, since no template in use does this"))
}

fn take(from: &Cell<u64>, cost: u64, what: &str) -> Result<(), Error> {
    match from.get().checked_sub(cost) {
        Some(left) => from.set(left),
        None => return Err(too(what)),
    }
    Ok(())
}

/// `bytes` are read.
pub(super) fn read(bytes: usize) -> Result<(), Error> {
    BUDGET.with(|b| {
        let asked = b.questions.get().wrapping_add(1);
        b.questions.set(asked);
        if asked.is_multiple_of(256) && b.end.get().is_some_and(|end| Instant::now() > end) {
            return Err(too("takes too long"));
        }
        take(&b.work, bytes as u64 + CALL, "works through too much text")
    })
}

/// A text of `bytes` is about to be made.
pub(super) fn make(bytes: usize) -> Result<(), Error> {
    read(bytes)?;
    BUDGET.with(|b| {
        if bytes as u64 > b.text.get() {
            return Err(too("makes a text that is too large"));
        }
        take(&b.made, bytes as u64, "makes too much text")
    })
}

/// `parts` of `bytes` each are about to become one text.
pub(super) fn make_times(parts: usize, bytes: usize) -> Result<(), Error> {
    make(parts.saturating_mul(bytes))
}

/// `bytes` are about to be written.
fn write(bytes: usize) -> Result<(), Error> {
    read(bytes)?;
    BUDGET.with(|b| take(&b.written, bytes as u64, "writes too much text"))
}

/// A value that was made: a text costs its bytes, a list its items.
fn count(value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return make(text.len());
    }
    if value.as_object().is_none() {
        return Ok(());
    }
    let items = items(value)?;
    BUDGET.with(|b| {
        // A view of other lists holds no items of its own.
        let held = if value.kind() == ValueKind::Iterable { 4 } else { items as u64 };
        take(&b.made, held * ITEM_BYTES, "makes too many lists")?;
        let left = b.built.get().checked_sub(1);
        b.many_lists.set(left.is_none());
        left.map(|left| b.built.set(left)).ok_or_else(|| too("makes too many lists"))
    })
}

/// How many items a list or map has, where they are few enough to be handled.
fn items(value: &Value) -> Result<usize, Error> {
    let items = match value.len() {
        Some(items) => items,
        None if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            value.try_iter()?.take(ITEMS + 1).count()
        }
        None => 0,
    };
    if items > ITEMS {
        return Err(too("has a list that is too long"));
    }
    read(items * 4)?;
    Ok(items)
}

/// What is under a value.
#[derive(Default)]
struct Size {
    bytes: usize,
    nodes: usize,
    depth: usize,
}

/// Walks over everything under a value: what printing or comparing it costs. Shared parts count as
/// often as they are met.
fn deep(value: &Value) -> Result<Size, Error> {
    let mut size = Size::default();
    walk(value, 0, &mut size)?;
    Ok(size)
}

fn walk(value: &Value, depth: usize, size: &mut Size) -> Result<(), Error> {
    size.nodes += 1;
    size.depth = size.depth.max(depth);
    if let Some(text) = value.as_str() {
        size.bytes += text.len();
        return read(text.len());
    }
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return if depth == 0 { Ok(()) } else { read(ITEM_BYTES as usize) };
    }
    if depth > DEPTH {
        return Err(too("nests lists too deep"));
    }
    read(ITEM_BYTES as usize)?;
    for item in value.try_iter()? {
        walk(&item, depth + 1, size)?;
        if kind == ValueKind::Map {
            walk(&value.get_item(&item)?, depth + 1, size)?;
        }
    }
    Ok(())
}

/// Reads an argument as far as a filter does that looks at items and not into them.
fn shallow(value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => read(text.len()),
        None if value.as_object().is_some() => items(value).map(|_| ()),
        None => Ok(()),
    }
}

/// A writer that stops where the budget does.
struct Counted<'a, W: Write>(&'a mut W);

impl<W: Write> Write for Counted<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.len()).map_err(|_| fmt::Error)?;
        self.0.write_str(text)
    }
}

/// Writes a value that is no number into the output.
pub(super) fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if !matches!(state.auto_escape(), AutoEscape::None) {
        let size = deep(value)?;
        write(size.bytes.saturating_mul(6))?;
        return minijinja::escape_formatter(out, state, value);
    }
    if let Some(text) = value.as_str() {
        write(text.len())?;
        return out.write_str(text).map_err(Error::from);
    }
    if value.as_object().is_none() {
        return minijinja::escape_formatter(out, state, value);
    }
    deep(value)?;
    write!(Counted(out), "{value}").map_err(|_| too("writes too much text"))
}

/// `left ~ right`.
fn text(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        make(left.len() + right.len())?;
        return Ok(Value::from([left, right].concat()));
    }
    let mut joined = String::new();
    for side in [left, right] {
        match side.as_str() {
            Some(text) => {
                make(text.len())?;
                joined.push_str(text);
            }
            None => joined.push_str(&printed(side)?),
        }
    }
    make(joined.len())?;
    Ok(Value::from(joined))
}

/// A value that is no text as `{{ }}` prints it.
pub(super) fn printed(value: &Value) -> Result<String, Error> {
    deep(value)?;
    let mut text = String::new();
    write!(Counted(&mut text), "{value}").map_err(|_| too("writes too much text"))?;
    Ok(text)
}

/// A value is about to be written as JSON. Its items are counted one by one as they are written;
/// this bounds how deep they nest.
pub(super) fn admit_json(value: &Value) -> Result<(), Error> {
    deep(value).map(|_| ())
}

/// What replacing costs: the text that comes out.
pub(super) fn replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    read(text.len())?;
    let found = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
    make((text.len() - found * from.len().min(text.len())).saturating_add(found.saturating_mul(to.len())))
}

/// What splitting costs: the parts.
pub(super) fn parted(text: &str, separator: Option<&str>) -> Result<(), Error> {
    read(text.len())?;
    // So few bytes cannot have too many parts.
    if text.len() <= ITEMS {
        return Ok(());
    }
    let parts = match separator {
        Some("") => 0,
        Some(separator) => text.matches(separator).count(),
        None => text.chars().filter(|c| c.is_whitespace()).count(),
    };
    if parts > ITEMS { Err(too("splits a text into too many parts")) } else { Ok(()) }
}

/// A format string whose widths are numbers that people write; so are the arguments where `*` takes
/// one as a width.
pub(super) fn formatted(format: &str, args: &[Value]) -> Result<(), Error> {
    let longest = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    let wide = |value: &Value| value.as_i64().is_none_or(|n| n.unsigned_abs() > 10_000) && value.is_number();
    if longest > 4 || (format.contains('*') && args.iter().any(wide)) {
        return Err(too("asks for a width that is too large"));
    }
    // Every directive may be as wide as its four digits say.
    make(format.matches(['%', '{']).count().saturating_mul(20_000).saturating_add(format.len()))
}

/// What the arguments of a filter cost before it runs.
fn admit(name: &str, args: &[Value]) -> Result<(), Error> {
    const SHALLOW_FILTERS: [&str; 24] = [
        "safe", "length", "count", "items", "reverse", "split", "lines", "default", "d", "round", "abs", "int",
        "float", "attr", "first", "last", "list", "bool", "batch", "slice", "select", "reject", "chain", "zip",
    ];
    let of = args.first();
    let argument = |at: usize| args.get(at);
    let text_at = |at: usize| args.get(at).and_then(Value::as_str);
    let mut size = Size::default();
    for (at, arg) in args.iter().enumerate() {
        match SHALLOW_FILTERS.contains(&name) || (at == 0 && matches!(name, "map" | "selectattr" | "rejectattr")) {
            true => shallow(arg)?,
            false => walk(arg, 0, &mut size)?,
        }
    }
    match name {
        "replace" => {
            let string = of.and_then(|v| if v.as_str().is_some() { v.to_str() } else { Some(v.to_string().into()) });
            let to = argument(2).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string));
            replaced(&string.unwrap_or_default(), text_at(1).unwrap_or_default(), &to.unwrap_or_default())
        }
        "indent" => {
            let width = match argument(1).filter(|v| !v.is_kwargs()) {
                Some(v) => v.as_str().map_or_else(|| v.as_usize(), |s| Some(s.len())),
                None => args.last().and_then(|k| k.get_attr("width").ok()).and_then(|w| w.as_usize()),
            };
            let lines = text_at(0).map_or(1, |t| t.matches('\n').count() + 1);
            make_times(lines, width.unwrap_or(4))
        }
        "join" => {
            let items = of.map_or(Ok(0), |v| v.as_str().map_or_else(|| items(v), |t| Ok(t.len())))?;
            let separator = args.last().map_or(0, |v| deep(v).map_or(0, |size| size.bytes));
            make_times(items, separator)
        }
        "batch" | "slice" => match args.iter().skip(1).any(|v| v.is_number() && v.as_usize().is_none_or(|n| n > ITEMS))
        {
            true => Err(too("asks for lists that are too long")),
            false => Ok(()),
        },
        "split" => text_at(0).map_or(Ok(()), |t| parted(t, text_at(1))),
        "lines" => text_at(0).map_or(Ok(()), |t| parted(t, Some("\n"))),
        "format" => text_at(0).map_or(Ok(()), |t| formatted(t, &args[1..])),
        "pprint" => make(size.nodes.saturating_mul(8 * (size.depth + 1)).saturating_add(size.bytes)),
        // Walking over a text makes a value of each character.
        "list" | "sort" | "unique" | "map" | "select" | "reject" | "groupby" | "chain" | "zip"
            if of.and_then(Value::as_str).is_some_and(|t| t.len() > ITEMS) =>
        {
            Err(too("has a list that is too long"))
        }
        _ => Ok(()),
    }
}

/// What a method costs before it runs.
pub(super) fn admit_method(value: &Value, name: &str, args: &[Value]) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => read(text.len())?,
        // Counting compares every item.
        None if name == "count" => deep(value).map(|_| ())?,
        None => return Ok(()),
    }
    for arg in args {
        deep(arg)?;
    }
    let (text, argument) = (value.as_str().unwrap_or_default(), |at: usize| args.get(at).and_then(Value::as_str));
    match name {
        "replace" => replaced(text, argument(0).unwrap_or_default(), argument(1).unwrap_or_default()),
        "join" => make_times(args.first().map_or(Ok(0), items)?, text.len()),
        "format" => formatted(text, args),
        "split" | "rsplit" => parted(text, argument(0)),
        "splitlines" => parted(text, Some("\n")),
        _ => Ok(()),
    }
}

/// A value that a filter or method made, counted.
pub(super) fn made(value: Value) -> Result<Value, Error> {
    count(&value)?;
    Ok(value)
}

/// Puts the budget before every filter, test and function of minijinja that handles more than one
/// item.
pub(super) fn guard(environment: &mut Environment<'static>) {
    environment.add_filter(MADE, |value: &Value| made(value.clone()));
    environment.add_filter(SHALLOW, |value: &Value| {
        if let Some(text) = value.as_str() {
            read(text.len())?;
        }
        Ok(value.clone())
    });
    environment.add_filter(DEEP, |value: &Value| deep(value).map(|_| value.clone()));
    // A part of a part looks through all of them whenever it is asked for its length.
    environment.add_filter(SLICED, |value: &Value| {
        match value.as_str() {
            Some(text) => read(text.len())?,
            None if value.kind() == ValueKind::Iterable => read(PART_OF_PART)?,
            None => {}
        }
        Ok(value.clone())
    });
    // Whether a map has a key is found without walking over it.
    environment.add_filter(SEARCHED, |value: &Value| match value.kind() {
        ValueKind::Map => Ok(value.clone()),
        _ => deep(value).map(|_| value.clone()),
    });
    environment.add_filter(TEXT, text);

    let filters: [(&'static str, Value); 42] = [
        ("safe", Value::from_function(filters::safe)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("replace", Value::from_function(filters::replace)),
        ("length", Value::from_function(filters::length)),
        ("count", Value::from_function(filters::length)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("items", Value::from_function(filters::items)),
        ("reverse", Value::from_function(filters::reverse)),
        ("join", Value::from_function(filters::join)),
        ("split", Value::from_function(filters::split)),
        ("lines", Value::from_function(filters::lines)),
        ("round", Value::from_function(filters::round)),
        ("int", Value::from_function(filters::int)),
        ("float", Value::from_function(filters::float)),
        ("first", Value::from_function(filters::first)),
        ("last", Value::from_function(filters::last)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sort", Value::from_function(filters::sort)),
        ("list", Value::from_function(filters::list)),
        ("string", Value::from_function(filters::string)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("sum", Value::from_function(filters::sum)),
        ("indent", Value::from_function(filters::indent)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("map", Value::from_function(filters::map)),
        ("groupby", Value::from_function(filters::groupby)),
        ("unique", Value::from_function(filters::unique)),
        ("chain", Value::from_function(filters::chain)),
        ("zip", Value::from_function(filters::zip)),
        ("pprint", Value::from_function(filters::pprint)),
        ("format", Value::from_function(filters::format)),
        ("abs", Value::from_function(filters::abs)),
    ];
    for (name, filter) in filters {
        environment.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            admit(name, &args)?;
            made(filter.call(state, &args)?)
        });
    }
    let tests: [(&[&'static str], Value); 11] = [
        (&["eq", "equalto", "=="], Value::from_function(tests::is_eq)),
        (&["ne", "!="], Value::from_function(tests::is_ne)),
        (&["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (&["le", "<="], Value::from_function(tests::is_le)),
        (&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt)),
        (&["ge", ">="], Value::from_function(tests::is_ge)),
        (&["in"], Value::from_function(tests::is_in)),
        (&["lower"], Value::from_function(tests::is_lower)),
        (&["upper"], Value::from_function(tests::is_upper)),
        (&["startingwith"], Value::from_function(tests::is_startingwith)),
        (&["endingwith"], Value::from_function(tests::is_endingwith)),
    ];
    for (names, test) in tests {
        for name in names {
            let test = test.clone();
            environment.add_test(*name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                args.iter().try_for_each(|arg| deep(arg).map(|_| ()))?;
                test.call(state, &args).map(|value| value.is_true())
            });
        }
    }
    let dict = Value::from_function(functions::dict);
    let namespace = Value::from_function(functions::namespace);
    for (name, function) in [("dict", dict), ("namespace", namespace)] {
        environment.add_function(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(|arg| deep(arg).map(|_| ()))?;
            made(function.call(state, &args)?)
        });
    }
    // Prints all there is, however large; transformers has no such function.
    environment.remove_global("debug");
}
