//! Whether there is memory for a second copy of all segments, asked before the first of them is made: a fallocate beyond a cgroup's
//! bound does not fail, it brings the kernel's killer.

use crate::units::show_bytes;

/// What must be left beside the copies: heap, page tables, the store's cache.
const MARGIN_BYTES: u64 = 32 << 20;

/// Whether so many bytes more fit; a sentence if not. What cannot be asked does not stand in the way.
pub(super) fn check(bytes: u64) -> Result<(), String> {
    let needed = bytes + MARGIN_BYTES;
    let of_host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let of_group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| left_in_group(&text));
    for (left, whose) in [(of_host, "this machine"), (of_group, "its cgroup (MemoryMax)")] {
        if let Some(left) = left.filter(|left| *left < needed) {
            return Err(format!(
                "a second copy of all segments needs {}, {whose} has {} left: give it more, or stop and start",
                show_bytes(needed),
                show_bytes(left)
            ));
        }
    }
    Ok(())
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}

fn left_in_group(cgroup: &str) -> Option<u64> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok()?.trim().parse().ok()
    };
    // Without a bound it says `max`, which is no number.
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read_and_too_much_is_refused() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("nothing"), None);
        check(1 << 20).unwrap();
        let refused = check(1 << 60).unwrap_err();
        assert!(refused.contains("left"), "{refused}");
    }
}
