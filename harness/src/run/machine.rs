//! Facts of this machine, for the report's `environment` and for `karat doctor`.

use std::collections::BTreeMap;

/// Facts of the machine: `os`, `arch`, `cpu`, `cores`, `memory`, `features`. What cannot be found
/// out is left out.
pub fn machine() -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: String| {
        facts.insert(name.to_string(), value);
    };
    fact("os", std::env::consts::OS.to_string());
    fact("arch", std::env::consts::ARCH.to_string());
    if let Ok(cores) = std::thread::available_parallelism() {
        fact("cores", cores.to_string());
    }
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    if let Some(cpu) = field(&cpuinfo, "model name") {
        fact("cpu", cpu);
    }
    if let Some(flags) = field(&cpuinfo, "flags") {
        let known = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"];
        let present: Vec<&str> = flags.split(' ').filter(|f| known.contains(f)).collect();
        fact("features", present.join(" "));
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(memory) = field(&meminfo, "MemTotal")
        && let Some(kib) = memory.strip_suffix(" kB").and_then(|k| k.parse::<u64>().ok())
    {
        fact("memory", format!("{:.1} GiB", kib as f64 / (1 << 20) as f64));
    }
    facts
}
