//! Memory of this process, plugins included, as Linux tells it; nothing where the system does not.

/// Resident memory now, in bytes.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most it ever was, in bytes.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
