//! Memory of this process, plugins included, as Linux tells it; nothing where the system does not.

use std::path::Path;

/// Resident memory now, in bytes.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// The most it ever was, in bytes.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, key)
}

/// The bytes that a line of `/proc` tells in kB.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// What this process could still take before the system runs out: the machine's memory that is free
/// or can be freed, or less where a control group (a container) or the process itself (`ulimit -v`)
/// has a limit.
pub fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kilobytes(&machine, "MemAvailable:")?;
    [left_in_groups(), left_in_limit()].into_iter().flatten().chain([machine]).min()
}

/// What is left of the address space that this process may have; nothing where that has no limit.
fn left_in_limit() -> Option<u64> {
    let limit = address_space(&std::fs::read_to_string("/proc/self/limits").ok()?)?;
    Some(limit.saturating_sub(status("VmSize:")?))
}

/// The soft limit of the address space, in bytes, as `/proc/self/limits` has it.
fn address_space(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the control groups (version 2) that this process is in have left; nothing where none has a
/// limit.
fn left_in_groups() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let of = |folder: &Path| {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        left_in_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
    };
    root.join(path).ancestors().take_while(|folder| folder.starts_with(root)).filter_map(of).min()
}

/// What a group has left by its three files; pages of files that it caches can be freed.
fn left_in_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let limit: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let cached = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let cached = cached("active_file ")? + cached("inactive_file ")?;
    Some(limit.saturating_sub(current.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_left_what_its_limit_says_and_caches_can_be_freed() {
        let stat = "anon 500\nfile 300\ninactive_file 100\nactive_file 200\n";
        assert_eq!(left_in_group("1000\n", "850\n", stat), Some(450));
        assert_eq!(left_in_group("500\n", "850\n", stat), Some(0));
        assert_eq!(left_in_group("max\n", "850\n", stat), None);
    }

    #[test]
    fn a_limit_of_the_address_space_is_read_and_none_is_none() {
        let limits =
            |soft: &str| format!("Limit  Soft Limit  Hard Limit  Units\nMax address space  {soft}  unlimited  bytes\n");
        assert_eq!(address_space(&limits("8192000000")), Some(8_192_000_000));
        assert_eq!(address_space(&limits("unlimited")), None);
    }

    #[test]
    fn a_system_that_tells_has_some_memory_left() {
        if cfg!(target_os = "linux") {
            assert!(available().is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
