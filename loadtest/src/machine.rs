//! The machine that a run was made on, and what its disk can do.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::histogram;

/// What a reader needs to compare figures of two machines.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many can run at once.
    pub cores: usize,
    /// Main memory.
    pub memory_mib: u64,
    /// The kernel.
    pub kernel: String,
    /// The file system the data lay on, with its device.
    pub file_system: String,
    /// 4 KiB appended and synced, in microseconds: median, 99% and worst.
    pub sync_us: [u64; 3],
}

impl Machine {
    /// Describes this machine; `data` is where the data will lie.
    pub fn describe(data: &Path) -> Result<Self> {
        let line = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = line("/proc/meminfo", "MemTotal");
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let syncs = sync_times(data, Duration::from_secs(2))?;
        Ok(Self {
            processor: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: memory_kib / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: file_system(data)?,
            sync_us: [0.5, 0.99, 1.0].map(|quantile| syncs.value_at_quantile(quantile) / 1000),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let [median, most, worst] = self.sync_us;
        format!(
            "{} × {}, {} MiB, Linux {}\ndata on {}; 4 KiB appended and synced: median {median} µs, p99 {most} µs, worst {worst} µs",
            self.cores, self.processor, self.memory_mib, self.kernel, self.file_system
        )
    }
}

/// The file system that `path` is on: mount point, device and type.
fn file_system(path: &Path) -> Result<String> {
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/mounts")?;
    let fields = |line: &str| {
        let mut fields = line.split(' ').map(str::to_owned);
        Some((fields.next()?, PathBuf::from(fields.next()?), fields.next()?))
    };
    mounts
        .lines()
        .filter_map(fields)
        .filter(|(_, mount, _)| path.starts_with(mount))
        .max_by_key(|(_, mount, _)| mount.as_os_str().len())
        .map(|(device, _, kind)| format!("{kind} ({device})"))
        .context("no file system")
}

/// Refuses directories that no disk stands behind.
pub fn require_disk(directory: &Path) -> Result<()> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58F6;
    let kind = u64::try_from(rustix::fs::statfs(directory)?.f_type).unwrap_or_default();
    if matches!(kind, TMPFS | RAMFS) {
        bail!("{} is in memory; figures need a disk: name a directory with --dir", directory.display());
    }
    Ok(())
}

/// Nanoseconds that appending 4 KiB and syncing takes, again and again for a while.
fn sync_times(directory: &Path, length: Duration) -> Result<Histogram<u64>> {
    let path = directory.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut times = histogram()?;
    let until = Instant::now() + length;
    while Instant::now() < until {
        let began = Instant::now();
        file.write_all(&[0x5A; 4096])?;
        file.sync_data()?;
        times.saturating_record(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    fs::remove_file(path)?;
    Ok(times)
}

/// The time a process has spent on the processors.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("the process has ended")?;
    // The name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').context("an unknown form of /proc/…/stat")?;
    let ticks: u64 =
        rest.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// The main memory a process holds of its own, in bytes: not what it has read or mapped from files, such as
/// its program.
pub fn resident_bytes(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("the process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_spent_time_and_holds_memory() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        processor_time(std::process::id()).unwrap();
        assert!(processor_time(u32::MAX).is_err());
    }
}
