//! AMX instructions on a CPU that has none: each raises SIGILL and is emulated in the handler of
//! that signal, so that the assembly itself is run wherever tests are.
//!
//! Encodings are those of the Intel SDM, volume 2: all have a VEX prefix of three bytes, the map
//! 0F38 and no immediate.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Once;

use super::SIDE;
use super::emulated::tdpbf16ps;

type Row = [u32; SIDE];

/// Eight tiles, and what they are configured for.
struct State {
    tiles: [[Row; SIDE]; 8],
    /// Rows, and bytes of a row; none where a tile is not configured.
    sizes: [(usize, usize); 8],
    /// Instructions that were carried out.
    done: usize,
}

thread_local! {
    static STATE: RefCell<State> =
        const { RefCell::new(State { tiles: [[[0; SIDE]; SIDE]; 8], sizes: [(0, 0); 8], done: 0 }) };
}

/// Carries out what `f` does with tiles on this thread; how many instructions that were.
pub(super) fn trapped(f: impl FnOnce()) -> usize {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: the action is complete, and what it replaces ends the process.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let of_refused: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = refused;
            action.sa_sigaction = of_refused as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigemptyset(&mut action.sa_mask);
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    STATE.with_borrow_mut(|state| state.done = 0);
    f();
    STATE.with_borrow(|state| state.done)
}

extern "C" fn refused(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's own context of the thread that was stopped, which goes on with what is
    // written here. The signal is one of an instruction of the code under test, so that nothing of
    // this thread's is half done.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let length = STATE.with_borrow_mut(|state| {
        state.done += 1;
        // SAFETY: no instruction is longer, and code of a function does not end with its page in a
        // test.
        let code = unsafe { (registers[libc::REG_RIP as usize] as *const [u8; 15]).read_unaligned() };
        // SAFETY: the instruction's operands are as good as the code under test.
        unsafe { carry_out(state, &code, registers) }
    });
    match length {
        Some(length) => registers[libc::REG_RIP as usize] += length,
        None => {
            eprintln!("an instruction that is none of the tiles', or names one that is not configured");
            std::process::abort();
        }
    }
}

/// The general registers by their numbers.
const NUMBERED: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Carries out one instruction; its length, or nothing where the CPU would refuse it too.
///
/// # Safety
/// The memory that it reads must be readable, and that which it writes writable.
unsafe fn carry_out(state: &mut State, code: &[u8; 15], registers: &[i64; 23]) -> Option<i64> {
    let [0xc4, map, vector, opcode, rest @ ..] = code else { return None };
    // Of the 0F38 map, 128 bits, W0; the extensions of registers are stored inverted.
    if map & 0x1f != 2 || vector & 0x84 != 0 {
        return None;
    }
    let extended = |bit: u8| usize::from(!map >> bit & 1) << 3;
    let (prefix, third) = (vector & 3, usize::from(!vector >> 3 & 15));
    let (mode, reg, rm) = (rest[0] >> 6, usize::from(rest[0] >> 3 & 7), usize::from(rest[0] & 7));
    let value = |number: usize| registers[NUMBERED[number] as usize];
    // An address in memory, the register that scales by rows, and the bytes from the opcode on.
    let memory = || {
        let (base, index, mut at) = match rm {
            4 => {
                let sib = rest[1];
                let index = usize::from(sib >> 3 & 7) | extended(6);
                let stride = if index == 4 { 0 } else { value(index) << (sib >> 6) };
                (usize::from(sib & 7) | extended(5), stride, 2)
            }
            _ => (rm | extended(5), 0, 1),
        };
        // Neither relative to this instruction nor without a base: nothing here is.
        if mode == 0 && base & 7 == 5 {
            return None;
        }
        let offset = match mode {
            0 => 0,
            1 => i64::from(rest[at] as i8),
            _ => i64::from(i32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])),
        };
        at += [0, 1, 4][usize::from(mode)];
        Some((value(base).wrapping_add(offset), index, 4 + at as i64))
    };
    let there = |state: &State, tile: usize| (tile < 8 && state.sizes[tile].0 > 0).then_some(tile);
    match (opcode, prefix, mode) {
        // ldtilecfg
        (0x49, 0, 0..3) if reg == 0 => {
            let (from, _, length) = memory()?;
            // SAFETY: the caller's promise.
            let bytes = unsafe { (from as *const [u8; 64]).read_unaligned() };
            if bytes[0] != 1 || bytes[1..16].iter().any(|x| *x != 0) {
                return None;
            }
            for tile in 0..8 {
                let width = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
                let rows = usize::from(bytes[48 + tile]);
                if width > 64 || rows > SIDE || (width == 0) != (rows == 0) {
                    return None;
                }
                state.sizes[tile] = (rows, width);
            }
            state.tiles = [[[0; SIDE]; SIDE]; 8];
            Some(length)
        }
        // tilerelease
        (0x49, 0, 3) if reg == 0 && rm == 0 => {
            state.sizes = [(0, 0); 8];
            Some(5)
        }
        // tilezero
        (0x49, 3, 3) if rm == 0 => {
            state.tiles[there(state, reg)?] = [[0; SIDE]; SIDE];
            Some(5)
        }
        // tileloadd, tilestored
        (0x4b, 3 | 2, 0..3) if rm == 4 => {
            let (from, stride, length) = memory()?;
            let tile = there(state, reg)?;
            let (rows, width) = state.sizes[tile];
            for (row, units) in state.tiles[tile].iter_mut().enumerate() {
                let at = from.wrapping_add(stride.wrapping_mul(row as i64));
                match (prefix, row < rows) {
                    // SAFETY: the caller's promise; a row of a tile is as wide at most.
                    (3, true) => unsafe {
                        *units = [0; SIDE];
                        std::ptr::copy_nonoverlapping(at as *const u8, units.as_mut_ptr().cast(), width);
                    },
                    (3, false) => *units = [0; SIDE],
                    // SAFETY: as above.
                    (_, true) => unsafe { std::ptr::copy_nonoverlapping(units.as_ptr().cast(), at as *mut u8, width) },
                    (_, false) => {}
                }
            }
            Some(length)
        }
        // tdpbf16ps
        (0x5c, 2, 3) => {
            let [c, a, b] = [there(state, reg)?, there(state, rm)?, there(state, third)?];
            let [of_c, of_a, of_b] = [c, a, b].map(|tile| state.sizes[tile]);
            if of_c.0 != of_a.0 || of_a.1 / 4 != of_b.0 || of_b.1 != of_c.1 || a == b || a == c || b == c {
                return None;
            }
            for row in 0..of_c.0 {
                let mut sums = state.tiles[c][row].map(f32::from_bits);
                tdpbf16ps(&mut sums, &state.tiles[a][row], &state.tiles[b]);
                state.tiles[c][row] = sums.map(f32::to_bits);
            }
            Some(5)
        }
        _ => None,
    }
}
