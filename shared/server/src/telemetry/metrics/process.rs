//! Memory and CPU usage of the process, read from /proc. The prometheus crate's own collector counts CPU time in whole
//! seconds and adds four more metrics. On a system without /proc, these metrics are missing.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Error, Gauge};

use super::registry::Registry;

/// The unit of times in /proc. Linux reports them in hundredths of a second on every platform that Rust supports,
/// independently of the kernel's own tick rate.
const TICKS_A_SECOND: f64 = 100.0;

/// The resource usage of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Used {
    pub(super) resident_bytes: u64,
    pub(super) cpu_seconds: f64,
    /// When the process started, in seconds since 1970.
    pub(super) started: f64,
}

pub(super) fn register(registry: &Registry) -> Result<(), Error> {
    let process = Process {
        resident: Gauge::new("process_resident_memory_bytes", "Resident memory of the process, in bytes")?,
        cpu: Counter::new("process_cpu_seconds_total", "User and system CPU time, in seconds")?,
        started: Gauge::new("process_start_time_seconds", "When the process was started, in seconds since 1970")?,
        reading: Arc::default(),
    };
    registry.add(process).map(drop)
}

/// Reads /proc at each scrape, which costs reading three small files.
#[derive(Clone)]
struct Process {
    resident: Gauge,
    cpu: Counter,
    started: Gauge,
    /// Serializes scrapes: two at once would add the same CPU time twice.
    reading: Arc<Mutex<()>>,
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [self.resident.desc(), self.cpu.desc(), self.started.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(used) = read() else { return Vec::new() };
        self.resident.set(used.resident_bytes as f64);
        self.cpu.inc_by((used.cpu_seconds - self.cpu.get()).max(0.0));
        self.started.set(used.started);
        [self.resident.collect(), self.cpu.collect(), self.started.collect()].concat()
    }
}

/// Returns `None` on a system without /proc.
pub(super) fn read() -> Option<Used> {
    let read = |path| std::fs::read_to_string(path).ok();
    parse(&read("/proc/self/status")?, &read("/proc/self/stat")?, &read("/proc/stat")?)
}

fn parse(status: &str, stat: &str, machine: &str) -> Option<Used> {
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
    // The second field is the program's name in parentheses, and the name may contain anything. So the fields are
    // counted from the closing parenthesis, behind which field 3 follows.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let booted: f64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Used {
        resident_bytes: kilobytes * 1024,
        cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_A_SECOND,
        started: booted + ticks(22)? / TICKS_A_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn proc_files_are_parsed_as_linux_writes_them() {
        let status = "Name:\tx\nVmHWM:\t   99 kB\nVmRSS:\t   12 kB\n";
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194304 90 0 0 0 250 50 0 0 20 0 9 0 1000 0 0";
        let used = parse(status, stat, "cpu 1 2\nbtime 1700000000\n").unwrap();
        assert_eq!(used, Used { resident_bytes: 12288, cpu_seconds: 3.0, started: 1_700_000_010.0 });
        assert_eq!(parse(status, "7 (cut) S 1", "btime 1"), None);
    }

    #[test]
    fn read_returns_plausible_usage_of_this_process() {
        let used = read().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(used.resident_bytes > 100_000 && used.started <= now + 1.0 && used.started > now - 3600.0, "{used:?}");
    }
}
