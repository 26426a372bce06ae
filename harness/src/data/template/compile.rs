//! From a template's source to what is rendered, with every place where a text or a list can grow
//! led through [`super::limits`].
//!
//! minijinja counts instructions, and one instruction can double a text; its operators call no
//! callback. So the parsed template is rebuilt: an operand or a result whose size matters passes
//! through a filter of [`super::limits`] whose name no template can write. What is rendered stays
//! the same to the byte. The parser and the code generator follow the nesting of expressions on the
//! stack without a limit, so nesting is counted on the tokens before, and both run on a thread with
//! room for what is allowed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use minijinja::machinery::ast::{
    AutoEscape, BinOp, BinOpKind, Block, Break, Call, CallArg, CallBlock, Compare, CompareOp, CompareOpKind, Const,
    Continue, Do, EmitExpr, EmitRaw, Expr, Extends, Filter, FilterBlock, ForLoop, FromImport, GetAttr, GetItem, IfCond,
    IfExpr, Import, Include, List, Macro, Map, Set, SetBlock, Slice, Spanned, Stmt, Template, Test, Tuple, UnaryOp,
    UnaryOpKind, Var, WithBlock,
};
use minijinja::machinery::{CodeGenerator, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::limits::{DEEP, MADE, SEARCHED, SHALLOW, SLICED, TEXT};
use crate::data::untrusted;

/// The largest source in bytes; those in use have some ten thousand.
const SOURCE_BYTES: usize = 512 << 10;
/// Operators, brackets and dots of one block: what bounds how deep an expression nests.
const OPERATORS: usize = 2_000;
/// All `elif` of a template: each nests in the one before.
const ELIFS: usize = 1_000;
/// Stack for parsing what these limits allow.
const STACK: usize = 64 << 20;
/// Raw text from this length on counts where it is written; shorter text is bounded by the
/// instructions.
const COUNTED_RAW: usize = 16;

/// Additions in a row that are counted together.
const UNCOUNTED_SUMS: usize = 5;
/// Finding a character this near to the start costs nothing that must be counted.
const NEAR: i64 = 1_000;

/// The name of the template in minijinja.
const NAME: &str = "chat_template";

/// A compiled template: its instructions and those of its blocks.
pub(super) struct Compiled {
    pub(super) instructions: Instructions<'static>,
    pub(super) blocks: BTreeMap<&'static str, Instructions<'static>>,
}

/// Compiles `source`.
///
/// # Errors
/// If it is too large, nests too deep or is no template.
pub(super) fn compile(source: &str) -> Result<Compiled, Error> {
    if source.len() > SOURCE_BYTES {
        let message = format!("it has {} bytes, more than the {SOURCE_BYTES} that are read", source.len());
        return Err(Error::new(ErrorKind::SyntaxError, message));
    }
    let source = interned(source);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_nesting(source, &syntax)?;
    untrusted::on_large_stack(STACK, || {
        let template = parse(source, NAME, syntax)?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&statement(&template));
        let (instructions, blocks) = generator.finish();
        Ok(Compiled { instructions, blocks })
    })
    .unwrap_or_else(|panic| Err(Error::new(ErrorKind::SyntaxError, panic)))
}

/// The source for as long as the process lives: the instructions borrow from it. The same text is
/// kept once.
fn interned(source: &str) -> &'static str {
    static SOURCES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = sources.get(source) {
        return kept;
    }
    let kept: &'static str = Box::leak(source.into());
    sources.insert(kept);
    kept
}

fn check_nesting(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut operators, mut elifs, mut opened) = (0, 0, false);
    for token in tokenize(source, false, syntax.clone()) {
        // What is no token is told by the parser, with its place.
        let Ok((token, span)) = token else { return Ok(()) };
        let at_start = std::mem::replace(&mut opened, matches!(token, Token::BlockStart));
        match token {
            Token::BlockStart | Token::VariableStart => operators = 0,
            Token::TemplateData(_)
            | Token::VariableEnd
            | Token::BlockEnd
            | Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_)
            | Token::Comma
            | Token::Colon
            | Token::Assign
            | Token::BracketClose
            | Token::ParenClose
            | Token::BraceClose => {}
            Token::Ident("elif") if at_start => elifs += 1,
            Token::Ident("not" | "and" | "or" | "if" | "else" | "is" | "in") => operators += 1,
            Token::Ident(_) => {}
            _ => operators += 1,
        }
        let what = match (operators > OPERATORS, elifs > ELIFS) {
            (true, _) => format!("an expression has more than {OPERATORS} operators"),
            (_, true) => format!("it has more than {ELIFS} branches of `elif`"),
            _ => continue,
        };
        return Err(Error::new(ErrorKind::SyntaxError, format!("line {}: {what}", span.start_line)));
    }
    Ok(())
}

/// A node in the place of another.
fn at<Old, New>(old: &Spanned<Old>, new: New) -> Spanned<New> {
    Spanned::new(new, old.span())
}

/// `expr` led through a filter of the limits.
fn through<'a>(filter: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(Spanned::new(Filter { name: filter, expr: Some(expr), args: Vec::new() }, span))
}

fn statements<'a>(list: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    list.iter().map(statement).collect()
}

fn statement<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(s) => Stmt::Template(at(s, Template { children: statements(&s.children) })),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(at(s, EmitExpr { expr: expression(&s.expr) })),
        Stmt::EmitRaw(s) if s.raw.len() >= COUNTED_RAW => {
            let text = Expr::Const(at(s, Const { value: Value::from(s.raw) }));
            Stmt::EmitExpr(at(s, EmitExpr { expr: text }))
        }
        Stmt::EmitRaw(s) => Stmt::EmitRaw(at(s, EmitRaw { raw: s.raw })),
        Stmt::ForLoop(s) => Stmt::ForLoop(at(
            s,
            ForLoop {
                target: target(&s.target),
                iter: through(SHALLOW, expression(&s.iter)),
                filter_expr: s.filter_expr.as_ref().map(expression),
                recursive: s.recursive,
                body: statements(&s.body),
                else_body: statements(&s.else_body),
            },
        )),
        Stmt::IfCond(s) => Stmt::IfCond(at(
            s,
            IfCond {
                expr: expression(&s.expr),
                true_body: statements(&s.true_body),
                false_body: statements(&s.false_body),
            },
        )),
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(to, value)| (target(to), expression(value))).collect();
            Stmt::WithBlock(at(s, WithBlock { assignments, body: statements(&s.body) }))
        }
        Stmt::Set(s) => Stmt::Set(at(s, Set { target: target(&s.target), expr: expression(&s.expr) })),
        Stmt::SetBlock(s) => {
            let filter = s.filter.as_ref().map(expression);
            Stmt::SetBlock(at(s, SetBlock { target: target(&s.target), filter, body: statements(&s.body) }))
        }
        Stmt::AutoEscape(s) => {
            let enabled = expression(&s.enabled);
            Stmt::AutoEscape(at(s, AutoEscape { enabled, body: statements(&s.body) }))
        }
        Stmt::FilterBlock(s) => {
            let filter = expression(&s.filter);
            Stmt::FilterBlock(at(s, FilterBlock { filter, body: statements(&s.body) }))
        }
        Stmt::Block(s) => Stmt::Block(at(s, Block { name: s.name, required: s.required, body: statements(&s.body) })),
        Stmt::Import(s) => Stmt::Import(at(s, Import { expr: expression(&s.expr), name: target(&s.name) })),
        Stmt::FromImport(s) => {
            let names = s.names.iter().map(|(name, to)| (target(name), to.as_ref().map(target))).collect();
            Stmt::FromImport(at(s, FromImport { expr: expression(&s.expr), names }))
        }
        Stmt::Extends(s) => Stmt::Extends(at(s, Extends { name: expression(&s.name) })),
        Stmt::Include(s) => {
            Stmt::Include(at(s, Include { name: expression(&s.name), ignore_missing: s.ignore_missing }))
        }
        Stmt::Macro(s) => Stmt::Macro(at(s, declaration(s))),
        Stmt::CallBlock(s) => Stmt::CallBlock(at(
            s,
            CallBlock { call: at(&s.call, call(&s.call)), macro_decl: at(&s.macro_decl, declaration(&s.macro_decl)) },
        )),
        Stmt::Continue(s) => Stmt::Continue(at(s, Continue)),
        Stmt::Break(s) => Stmt::Break(at(s, Break)),
        Stmt::Do(s) => Stmt::Do(at(s, Do { call: at(&s.call, call(&s.call)) })),
    }
}

fn declaration<'a>(of: &Macro<'a>) -> Macro<'a> {
    Macro {
        name: of.name,
        args: of.args.iter().map(target).collect(),
        defaults: of.defaults.iter().map(expression).collect(),
        body: statements(&of.body),
    }
}

/// What is assigned to: names, lists of names, attributes of a namespace.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::List(e) => Expr::List(at(e, List { items: e.items.iter().map(target).collect() })),
        Expr::Tuple(e) => Expr::Tuple(at(e, Tuple { items: e.items.iter().map(target).collect() })),
        other => expression(other),
    }
}

fn expressions<'a>(list: &[Expr<'a>]) -> Vec<Expr<'a>> {
    list.iter().map(expression).collect()
}

/// Whether it surely is a small thing: a literal, a sum of numbers, a truth.
fn is_small(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(_) | Expr::Compare(_) | Expr::Test(_) | Expr::UnaryOp(_) => true,
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => expr.as_const().is_some(),
        Expr::BinOp(e) => matches!(e.op, BinOpKind::Sub | BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem),
        _ => false,
    }
}

/// Whether it is a literal number of at most [`NEAR`], not below 0.
fn is_near(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(number) if number.value.as_i64().is_some_and(|n| (0..=NEAR).contains(&n)))
}

/// The right side of a comparison, counted unless a side is small: comparing costs no more than the
/// smaller side.
fn compared<'a>(op: CompareOpKind, left: &Expr<'a>, right: &Expr<'a>) -> Expr<'a> {
    match op {
        _ if is_small(right) => expression(right),
        CompareOpKind::In | CompareOpKind::NotIn => through(SEARCHED, expression(right)),
        _ if is_small(left) => expression(right),
        _ => through(DEEP, expression(right)),
    }
}

fn compare_kind(op: BinOpKind) -> Option<CompareOpKind> {
    Some(match op {
        BinOpKind::Eq => CompareOpKind::Eq,
        BinOpKind::Ne => CompareOpKind::Ne,
        BinOpKind::Lt => CompareOpKind::Lt,
        BinOpKind::Lte => CompareOpKind::Lte,
        BinOpKind::Gt => CompareOpKind::Gt,
        BinOpKind::Gte => CompareOpKind::Gte,
        BinOpKind::In => CompareOpKind::In,
        _ => return None,
    })
}

/// The left side of `in` may become a text where the right side is one.
fn searched<'a>(op: CompareOpKind, left: &Expr<'a>, right: &Expr<'a>) -> Expr<'a> {
    let contains = matches!(op, CompareOpKind::In | CompareOpKind::NotIn);
    if contains && !is_small(left) && !is_small(right) { through(DEEP, expression(left)) } else { expression(left) }
}

/// A sum of texts, and how many additions of it are not counted yet: a run of a few makes no more
/// than a few times the largest text before it is counted.
fn sum<'a>(e: &Spanned<BinOp<'a>>) -> (Expr<'a>, usize) {
    let (left, uncounted) = match &e.left {
        Expr::BinOp(inner) if matches!(inner.op, BinOpKind::Add) => sum(inner),
        other => (expression(other), 0),
    };
    let added = Expr::BinOp(at(e, BinOp { op: e.op, left, right: expression(&e.right) }));
    if uncounted + 1 < UNCOUNTED_SUMS { (added, uncounted + 1) } else { (through(MADE, added), 0) }
}

fn binary<'a>(e: &Spanned<BinOp<'a>>) -> Expr<'a> {
    if matches!(e.op, BinOpKind::Add) {
        let (added, uncounted) = sum(e);
        return if uncounted > 0 { through(MADE, added) } else { added };
    }
    let op = |left, right| Expr::BinOp(at(e, BinOp { op: e.op, left, right }));
    if let Some(kind) = compare_kind(e.op) {
        return op(searched(kind, &e.left, &e.right), compared(kind, &e.left, &e.right));
    }
    let (left, right) = (expression(&e.left), expression(&e.right));
    match e.op {
        // A text of both, whatever they are: done by the limits themselves.
        BinOpKind::Concat => {
            let args = vec![CallArg::Pos(right)];
            Expr::Filter(at(e, Filter { name: TEXT, expr: Some(left), args }))
        }
        // Led through, the left side is no literal any more that the code generator would multiply.
        BinOpKind::Mul => through(MADE, op(through(SHALLOW, left), right)),
        _ => op(left, right),
    }
}

fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    let some = |e: &Option<Expr<'a>>| e.as_ref().map(expression);
    match expr {
        Expr::Var(e) => Expr::Var(at(e, Var { id: e.id })),
        Expr::Const(e) => Expr::Const(at(e, Const { value: e.value.clone() })),
        Expr::Slice(e) => {
            let of = through(SLICED, expression(&e.expr));
            let slice = Slice { expr: of, start: some(&e.start), stop: some(&e.stop), step: some(&e.step) };
            through(MADE, Expr::Slice(at(e, slice)))
        }
        Expr::UnaryOp(e) => {
            let op = if matches!(e.op, UnaryOpKind::Not) { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(at(e, UnaryOp { op, expr: expression(&e.expr) }))
        }
        Expr::BinOp(e) => binary(e),
        Expr::Compare(e) => {
            let mut before = &e.expr;
            let mut ops = Vec::with_capacity(e.ops.len());
            for CompareOp { op, expr } in &e.ops {
                ops.push(CompareOp { op: *op, expr: compared(*op, before, expr) });
                before = expr;
            }
            let first = match &e.ops[..] {
                [CompareOp { op, expr }] => searched(*op, &e.expr, expr),
                _ => expression(&e.expr),
            };
            Expr::Compare(at(e, Compare { expr: first, ops }))
        }
        Expr::IfExpr(e) => Expr::IfExpr(at(
            e,
            IfExpr {
                test_expr: expression(&e.test_expr),
                true_expr: expression(&e.true_expr),
                false_expr: some(&e.false_expr),
            },
        )),
        Expr::Filter(e) => Expr::Filter(at(e, Filter { name: e.name, expr: some(&e.expr), args: arguments(&e.args) })),
        Expr::Test(e) => Expr::Test(at(e, Test { name: e.name, expr: expression(&e.expr), args: arguments(&e.args) })),
        Expr::GetAttr(e) => Expr::GetAttr(at(e, GetAttr { expr: expression(&e.expr), name: e.name })),
        Expr::GetItem(e) => {
            let of = expression(&e.expr);
            // Finding the n-th character of a text costs its length; a key given as text is a
            // map's.
            let by_key = matches!(&e.subscript_expr, Expr::Const(key) if key.value.kind() == ValueKind::String);
            let of = if by_key || is_near(&e.subscript_expr) { of } else { through(SHALLOW, of) };
            Expr::GetItem(at(e, GetItem { expr: of, subscript_expr: key(&e.subscript_expr) }))
        }
        Expr::Call(e) => Expr::Call(at(e, call(e))),
        Expr::List(e) => built(expr, Expr::List(at(e, List { items: expressions(&e.items) }))),
        Expr::Tuple(e) => built(expr, Expr::Tuple(at(e, Tuple { items: expressions(&e.items) }))),
        Expr::Map(e) => {
            let map = Map { keys: e.keys.iter().map(key).collect(), values: expressions(&e.values) };
            built(expr, Expr::Map(at(e, map)))
        }
    }
}

/// A key of a map: all of it is compared.
fn key<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_small(expr) { expression(expr) } else { through(DEEP, expression(expr)) }
}

/// A list or map that is made anew each time counts; a literal is there once.
fn built<'a>(old: &Expr<'a>, new: Expr<'a>) -> Expr<'a> {
    if old.as_const().is_some() { new } else { through(MADE, new) }
}

fn call<'a>(of: &Call<'a>) -> Call<'a> {
    let mut args = arguments(&of.args);
    if matches!(of.expr, Expr::Var(_)) {
        // Called with a text, the loop of a recursive `for` walks over its characters.
        args = args.into_iter().map(counted).collect();
    }
    Call { expr: expression(&of.expr), args }
}

fn counted(arg: CallArg<'_>) -> CallArg<'_> {
    match arg {
        CallArg::Pos(e) if !is_small(&e) => CallArg::Pos(through(SHALLOW, e)),
        other => other,
    }
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    args.iter()
        .map(|arg| match arg {
            CallArg::Pos(e) => CallArg::Pos(expression(e)),
            CallArg::Kwarg(name, e) => CallArg::Kwarg(name, expression(e)),
            // Every item becomes an argument.
            CallArg::PosSplat(e) => CallArg::PosSplat(through(MADE, expression(e))),
            CallArg::KwargSplat(e) => CallArg::KwargSplat(through(MADE, expression(e))),
        })
        .collect()
}
