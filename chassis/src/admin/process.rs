//! CPU, memory and start time of this process, read from `/proc` when they are scraped.
//!
//! Names and units are those of the Prometheus client libraries, so that everyone's dashboards fit.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

/// The clock ticks in a second in `/proc/*/stat` (USER_HZ): 100 on every Linux ABI that Rust supports.
const TICKS_IN_SECOND: f64 = 100.0;

/// Reports what the Linux kernel knows of this process. On other systems it reports nothing.
#[derive(Debug)]
pub struct ProcessMetrics;

impl ProcessMetrics {
    /// Adds `process_cpu_seconds_total`, `process_resident_memory_bytes` and `process_start_time_seconds`.
    pub fn register(registry: &mut Registry) {
        registry.register_collector(Box::new(Self));
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(reading) = Reading::take() else { return Ok(()) };
        let cpu = ConstCounter::new(reading.cpu_seconds);
        let help = "User and system CPU time used.";
        cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?)?;
        let memory = ConstGauge::new(reading.resident_bytes);
        let help = "Resident memory.";
        let unit = Some(&Unit::Bytes);
        memory.encode(encoder.encode_descriptor("process_resident_memory", help, unit, memory.metric_type())?)?;
        let start = ConstGauge::new(reading.start_seconds);
        let help = "Start time, in seconds since 1970.";
        let unit = Some(&Unit::Seconds);
        start.encode(encoder.encode_descriptor("process_start_time", help, unit, start.metric_type())?)
    }
}

#[derive(Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    resident_bytes: i64,
    start_seconds: f64,
}

impl Reading {
    fn take() -> Option<Self> {
        Self::parse(
            &fs::read_to_string("/proc/self/stat").ok()?,
            &fs::read_to_string("/proc/self/status").ok()?,
            &fs::read_to_string("/proc/stat").ok()?,
        )
    }

    /// See proc_pid_stat(5), proc_pid_status(5), proc_stat(5).
    fn parse(own_stat: &str, own_status: &str, stat: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may hold blanks and brackets itself.
        let (_, after_name) = own_stat.rsplit_once(") ")?;
        // `after_name` starts with field 3, so field n is at n - 3.
        let field = |number: usize| after_name.split_ascii_whitespace().nth(number - 3)?.parse::<f64>().ok();
        let boot_seconds: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let resident = own_status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib: i64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / TICKS_IN_SECOND,
            resident_bytes: resident_kib * 1024,
            start_seconds: boot_seconds + field(22)? / TICKS_IN_SECOND,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let own_stat = "7 (odd) name) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 12345 1000000 200 0";
        let reading = Reading::parse(own_stat, "Name:\tx\nVmRSS:\t  2048 kB\n", "cpu 1 2\nbtime 1700000000\n");
        let expected = Reading { cpu_seconds: 2.0, resident_bytes: 2_097_152, start_seconds: 1_700_000_123.45 };
        assert_eq!(reading, Some(expected));
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(Reading::take().is_some_and(|reading| reading.resident_bytes > 0));
    }
}
