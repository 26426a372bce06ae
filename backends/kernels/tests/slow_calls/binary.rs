//! Which functions of a built x86-64 program or library call which others, read from its machine
//! code.
//!
//! No disassembler is needed for that. A call of a known function is a direct one (`call`, or `jmp`
//! at a function's end), one through a slot that the loader fills, or its address is taken first,
//! to be called in a loop. Each of these ends with four bytes that count from there to the function
//! or its slot.

use std::collections::BTreeMap;

use object::read::elf::ElfFile64;
use object::{
    Architecture, Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget, SectionKind, SymbolKind,
};

/// The function that calls and the one it calls.
pub type Call = (String, String);

/// How often each function calls one that `wanted` names, by demangled names.
///
/// # Errors
/// If this is no such program, or its symbols were stripped.
pub fn calls(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<BTreeMap<Call, usize>, String> {
    let file = ElfFile64::<object::Endianness>::parse(bytes).map_err(|e| format!("no ELF file: {e}"))?;
    if file.architecture() != Architecture::X86_64 {
        return Err(format!("built for {:?}", file.architecture()));
    }
    let places = Places::of(&file, wanted);
    let mut found = BTreeMap::new();
    let mut functions = 0;
    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0 && !s.is_undefined()) {
        let Ok(name) = symbol.name() else { continue };
        let Some(section) = symbol.section_index().and_then(|i| file.section_by_index(i).ok()) else { continue };
        let Ok(Some(code)) = section.data_range(symbol.address(), symbol.size()) else { continue };
        functions += 1;
        for callee in places.called(code, symbol.address()) {
            *found.entry((format!("{:#}", rustc_demangle::demangle(name)), callee.to_owned())).or_default() += 1;
        }
    }
    if functions == 0 {
        return Err("it has no symbols: it was stripped".into());
    }
    Ok(found)
}

/// Where functions that are looked for begin, and where their addresses are kept.
#[derive(Default)]
struct Places {
    functions: BTreeMap<u64, String>,
    slots: BTreeMap<u64, String>,
}

impl Places {
    fn of(file: &ElfFile64<'_>, wanted: &dyn Fn(&str) -> bool) -> Self {
        // `exp@GLIBC_2.29` is `exp`.
        let named = |name: &str| name.split('@').next().filter(|name| wanted(name)).map(str::to_owned);
        let mut places = Places::default();
        for symbol in file.symbols().chain(file.dynamic_symbols()).filter(|s| s.address() > 0) {
            if let Some(name) = symbol.name().ok().and_then(named) {
                places.functions.insert(symbol.address(), name);
            }
        }
        let imported = file.dynamic_symbol_table();
        for (at, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let name = match relocation.target() {
                RelocationTarget::Symbol(index) => {
                    let symbol = imported.as_ref().and_then(|table| table.symbol_by_index(index).ok());
                    symbol.and_then(|symbol| symbol.name().ok()).and_then(named)
                }
                _ => places.functions.get(&(relocation.addend() as u64)).cloned(),
            };
            if let Some(name) = name {
                places.slots.insert(at, name);
            }
        }
        // Stubs of a procedure linkage table: `jmp [slot]`, after `endbr64` or not.
        for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
            if !section.name().is_ok_and(|name| name.starts_with(".plt")) {
                continue;
            }
            let Ok(code) = section.data() else { continue };
            for at in 0..code.len().saturating_sub(5) {
                if code[at..at + 2] != [0xff, 0x25] {
                    continue;
                }
                if let Some(name) = places.slots.get(&pointed(code, at + 2, section.address())).cloned() {
                    let before = if code[..at].ends_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 };
                    places.functions.insert(section.address() + (at - before) as u64, name);
                }
            }
        }
        places
    }

    /// The names of what `code`, which begins at `address`, calls or takes the address of.
    fn called<'a>(&'a self, code: &'a [u8], address: u64) -> impl Iterator<Item = &'a str> {
        (1..code.len().saturating_sub(3)).filter_map(move |at| {
            let to = pointed(code, at, address);
            let before = if at > 1 { code[at - 2] } else { 0 };
            // An operand that counts from the next instruction, whatever register is the other.
            let relative = code[at - 1] & 0xc7 == 0x05;
            match (before, code[at - 1]) {
                (_, 0xe8 | 0xe9) if self.functions.contains_key(&to) => self.functions.get(&to),
                // `call [slot]`, `jmp [slot]`, and `mov register, [slot]`.
                (0xff, 0x15 | 0x25) => self.slots.get(&to),
                (0x8b, _) if relative => self.slots.get(&to),
                // `lea register, [function]`.
                (0x8d, _) if relative => self.functions.get(&to),
                _ => None,
            }
            .map(String::as_str)
        })
    }
}

/// Where the four bytes at `at` point to, counted from their end.
fn pointed(code: &[u8], at: usize, address: u64) -> u64 {
    let bytes = [code[at], code[at + 1], code[at + 2], code[at + 3]];
    (address + at as u64 + 4).wrapping_add_signed(i64::from(i32::from_le_bytes(bytes)))
}
