//! Limits of block devices, huge pages, the network and RDMA, and v2's files by name.

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::{LinuxBlockIo, LinuxHugepageLimit, LinuxNetwork, LinuxResources};

use super::{List, Missing, Setting};
use crate::error::{Result, bail};

impl List<'_> {
    pub(super) fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<()> {
        if block_io.leaf_weight().is_some_and(|weight| weight != 0) {
            bail!(Unimplemented, "linux.resources.blockIO.leafWeight: gone from the kernel");
        }
        if let Some(weight) = block_io.weight().filter(|weight| *weight != 0) {
            // BFQ's file has the same range in both versions; without BFQ v2 has a weight of its own.
            let (file, missing) = if self.v2 {
                let value = format!("default {}", weight_of_block_io(weight));
                ("io.bfq.weight", Missing::Instead { file: "io.weight".to_owned(), value })
            } else {
                ("blkio.bfq.weight", Missing::Error)
            };
            self.add_or("linux.resources.blockIO.weight", Controllers::BlkIo, file, weight, missing);
        }
        for device in block_io.weight_device().iter().flatten() {
            if device.leaf_weight().is_some_and(|weight| weight != 0) {
                bail!(Unimplemented, "linux.resources.blockIO.weightDevice: leafWeight is gone from the kernel");
            }
            let Some(weight) = device.weight().filter(|weight| *weight != 0) else { continue };
            let number = format!("{}:{}", device.major(), device.minor());
            let (file, missing) = if self.v2 {
                let value = format!("{number} {}", weight_of_block_io(weight));
                ("io.bfq.weight", Missing::Instead { file: "io.weight".to_owned(), value })
            } else {
                ("blkio.bfq.weight_device", Missing::Error)
            };
            let field = "linux.resources.blockIO.weightDevice";
            self.add_or(field, Controllers::BlkIo, file, format!("{number} {weight}"), missing);
        }
        let throttles = [
            (
                "linux.resources.blockIO.throttleReadBpsDevice",
                "blkio.throttle.read_bps_device",
                "rbps",
                block_io.throttle_read_bps_device(),
            ),
            (
                "linux.resources.blockIO.throttleWriteBpsDevice",
                "blkio.throttle.write_bps_device",
                "wbps",
                block_io.throttle_write_bps_device(),
            ),
            (
                "linux.resources.blockIO.throttleReadIOPSDevice",
                "blkio.throttle.read_iops_device",
                "riops",
                block_io.throttle_read_iops_device(),
            ),
            (
                "linux.resources.blockIO.throttleWriteIOPSDevice",
                "blkio.throttle.write_iops_device",
                "wiops",
                block_io.throttle_write_iops_device(),
            ),
        ];
        for (field, v1, v2, devices) in throttles {
            for device in devices.iter().flatten() {
                let (major, minor, rate) = (device.major(), device.minor(), device.rate());
                let (file, value) = if self.v2 {
                    // No limit, as v1 understands it.
                    let rate = if rate == 0 { "max".to_owned() } else { rate.to_string() };
                    ("io.max", format!("{major}:{minor} {v2}={rate}"))
                } else {
                    (v1, format!("{major}:{minor} {rate}"))
                };
                self.add(field, Controllers::BlkIo, file, value);
            }
        }
        Ok(())
    }

    pub(super) fn huge_pages(&mut self, limit: &LinuxHugepageLimit) -> Result<()> {
        let (field, size) = ("linux.resources.hugepageLimits", limit.page_size());
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!(InvalidArgument, "{field}: {size:?} is no size of pages, such as 2MB");
        }
        let file = if self.v2 { "max" } else { "limit_in_bytes" };
        self.add(field, Controllers::HugeTlb, &format!("hugetlb.{size}.{file}"), limit.limit());
        // What is reserved is counted apart since Linux 5.7: with it mmap(2) fails where else the process gets SIGBUS.
        let reserved = format!("hugetlb.{size}.rsvd.{file}");
        self.add_or(field, Controllers::HugeTlb, &reserved, limit.limit(), Missing::Same);
        Ok(())
    }

    pub(super) fn network(&mut self, network: &LinuxNetwork) -> Result<()> {
        // 0 is what a new cgroup has, and clients send.
        let class = network.class_id().filter(|class| *class != 0);
        let is_set = class.is_some() || network.priorities().iter().flatten().next().is_some();
        if self.v2 && is_set {
            bail!(Unimplemented, "linux.resources.network: cgroup v2 has no network controllers");
        }
        if let Some(class) = class {
            self.add("linux.resources.network.classID", Controllers::NetCls, "net_cls.classid", class);
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            self.add("linux.resources.network.priorities", Controllers::NetPrio, "net_prio.ifpriomap", value);
        }
        Ok(())
    }

    /// v2's files by name, each written line by line.
    pub(super) fn unified(&mut self, resources: &LinuxResources) -> Result<()> {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        for (file, value) in files {
            if !self.v2 {
                bail!(InvalidArgument, "linux.resources.unified: {file}: this host has cgroup v1");
            }
            if file.contains('/') || file.starts_with('.') || !file.contains('.') {
                bail!(InvalidArgument, "linux.resources.unified: {file} is not a cgroup file");
            }
            // A write of nothing at all would not reach the kernel.
            let lines = if value.is_empty() { vec!["\n"] } else { value.lines().collect() };
            self.settings.extend(lines.into_iter().map(|line| Setting {
                field: "linux.resources.unified",
                controller: None,
                file: file.clone(),
                value: line.to_owned(),
                missing: Missing::Error,
            }));
        }
        Ok(())
    }
}

/// A weight of block I/O (10 to 1000) as one of v2 (1 to 10000), in proportion: the conversion of runc and
/// crun.
fn weight_of_block_io(weight: u16) -> u32 {
    1 + u32::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_meet_at_their_ends() {
        assert_eq!([10, 1000].map(weight_of_block_io), [1, 10_000]);
    }
}
