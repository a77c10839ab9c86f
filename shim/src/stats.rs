//! What a container has used → the message that containerd's clients read, by the host's version of cgroups.

use containerd_shim_protos::cgroups::metrics as m1;
use containerd_shim_protos::cgroups_v2::metrics as m2;
use executors::stats::{PidsStat, RdmaEntry, RdmaStat, Stats, v1, v2};
use executors::{Error, Kind, Result};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// The stats as `io.containerd.cgroups.v1.Metrics` or `v2.Metrics`, under their bare names, as containerd's typeurl has them.
pub fn any(stats: &Stats) -> Result<Any> {
    // Not from the messages' descriptors: reflection would cost memory for good.
    let (name, value) = match stats {
        Stats::V1(metrics) => ("io.containerd.cgroups.v1.Metrics", v1_metrics(metrics).write_to_bytes()),
        Stats::V2(metrics) => ("io.containerd.cgroups.v2.Metrics", v2_metrics(metrics).write_to_bytes()),
    };
    let mut any = Any::new();
    any.type_url = name.to_owned();
    any.value = value.map_err(|e| Error::new(Kind::Internal, e).context("encode the stats"))?;
    Ok(any)
}

/// A message with fields of the same names as the struct's.
macro_rules! message {
    ($from:expr => $message:path { $($field:ident),* $(,)? }) => {{
        let from = $from;
        let mut message = <$message>::new();
        $(message.$field = from.$field.clone();)*
        message
    }};
}

/// A group of fields that may be missing.
fn field<T, M>(group: &Option<T>, message: impl FnOnce(&T) -> M) -> MessageField<M> {
    group.as_ref().map(message).into()
}

fn list<T, M>(list: &[T], message: impl FnMut(&T) -> M) -> Vec<M> {
    list.iter().map(message).collect()
}

// Nothing inside a group that is there is left out: containerd's clients look into it without asking.

fn v1_metrics(metrics: &v1::Metrics) -> m1::Metrics {
    let mut message = m1::Metrics::new();
    message.hugetlb = list(&metrics.hugetlb, |h| message!(h => m1::HugetlbStat { usage, max, failcnt, pagesize }));
    message.pids = field(&metrics.pids, |pids: &PidsStat| message!(pids => m1::PidsStat { current, limit }));
    message.cpu = field(&metrics.cpu, v1_cpu);
    message.memory = field(&metrics.memory, v1_memory);
    message.blkio = field(&metrics.blkio, v1_block_io);
    message.rdma = field(&metrics.rdma, |rdma: &RdmaStat| {
        let entry = |entry: &RdmaEntry| message!(entry => m1::RdmaEntry { device, hca_handles, hca_objects });
        let mut message = m1::RdmaStat::new();
        message.current = list(&rdma.current, entry);
        message.limit = list(&rdma.limit, entry);
        message
    });
    message.memory_oom_control = field(
        &metrics.memory_oom_control,
        |control| message!(control => m1::MemoryOomControl { oom_kill_disable, under_oom, oom_kill }),
    );
    message
}

fn v1_cpu(cpu: &v1::CpuStat) -> m1::CPUStat {
    let mut message = m1::CPUStat::new();
    message.usage = MessageField::some(message!(&cpu.usage => m1::CPUUsage { total, kernel, user, per_cpu }));
    let throttling = message!(&cpu.throttling => m1::Throttle { periods, throttled_periods, throttled_time });
    message.throttling = MessageField::some(throttling);
    message
}

fn v1_memory(memory: &v1::MemoryStat) -> m1::MemoryStat {
    let entry =
        |entry: &v1::MemoryEntry| MessageField::some(message!(entry => m1::MemoryEntry { limit, usage, max, failcnt }));
    let mut message = message!(&memory.stat => m1::MemoryStat {
        cache, rss, rss_huge, mapped_file, dirty, writeback, pg_pg_in, pg_pg_out, pg_fault, pg_maj_fault,
        inactive_anon, active_anon, inactive_file, active_file, unevictable,
        hierarchical_memory_limit, hierarchical_swap_limit,
        total_cache, total_rss, total_rss_huge, total_mapped_file, total_dirty, total_writeback,
        total_pg_pg_in, total_pg_pg_out, total_pg_fault, total_pg_maj_fault,
        total_inactive_anon, total_active_anon, total_inactive_file, total_active_file, total_unevictable,
    });
    message.usage = entry(&memory.usage);
    message.swap = entry(&memory.swap);
    message.kernel = entry(&memory.kernel);
    message.kernel_tcp = entry(&memory.kernel_tcp);
    message
}

fn v1_block_io(stat: &v1::BlkIoStat) -> m1::BlkIOStat {
    let entries = |entries: &Vec<v1::BlkIoEntry>| {
        list(entries, |entry| message!(entry => m1::BlkIOEntry { op, device, major, minor, value }))
    };
    let mut message = m1::BlkIOStat::new();
    message.io_service_bytes_recursive = entries(&stat.io_service_bytes_recursive);
    message.io_serviced_recursive = entries(&stat.io_serviced_recursive);
    message.io_queued_recursive = entries(&stat.io_queued_recursive);
    message.io_service_time_recursive = entries(&stat.io_service_time_recursive);
    message.io_wait_time_recursive = entries(&stat.io_wait_time_recursive);
    message.io_merged_recursive = entries(&stat.io_merged_recursive);
    message.io_time_recursive = entries(&stat.io_time_recursive);
    message.sectors_recursive = entries(&stat.sectors_recursive);
    message
}

fn v2_metrics(metrics: &v2::Metrics) -> m2::Metrics {
    let mut message = m2::Metrics::new();
    message.pids = field(&metrics.pids, |pids: &PidsStat| message!(pids => m2::PidsStat { current, limit }));
    message.cpu = field(&metrics.cpu, |cpu| {
        let mut message = message!(&cpu.stat => m2::CPUStat {
            usage_usec, user_usec, system_usec, nr_periods, nr_throttled, throttled_usec, nr_bursts, burst_usec,
        });
        message.psi = field(&cpu.psi, v2_psi);
        message
    });
    message.memory = field(&metrics.memory, v2_memory);
    message.rdma = field(&metrics.rdma, |rdma: &RdmaStat| {
        let entry = |entry: &RdmaEntry| message!(entry => m2::RdmaEntry { device, hca_handles, hca_objects });
        let mut message = m2::RdmaStat::new();
        message.current = list(&rdma.current, entry);
        message.limit = list(&rdma.limit, entry);
        message
    });
    message.io = field(&metrics.io, |io| {
        let mut message = m2::IOStat::new();
        message.usage =
            list(&io.usage, |entry| message!(entry => m2::IOEntry { major, minor, rbytes, wbytes, rios, wios }));
        message.psi = field(&io.psi, v2_psi);
        message
    });
    message.hugetlb = list(&metrics.hugetlb, |h| message!(h => m2::HugeTlbStat { current, max, pagesize, failcnt }));
    message.memory_events = field(
        &metrics.memory_events,
        |events| message!(events => m2::MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill }),
    );
    message
}

fn v2_memory(memory: &v2::MemoryStat) -> m2::MemoryStat {
    let mut message = message!(&memory.stat => m2::MemoryStat {
        anon, file, kernel_stack, slab, sock, shmem, file_mapped, file_dirty, file_writeback, anon_thp,
        inactive_anon, active_anon, inactive_file, active_file, unevictable, slab_reclaimable, slab_unreclaimable,
        pgfault, pgmajfault, workingset_refault, workingset_activate, workingset_nodereclaim,
        pgrefill, pgscan, pgsteal, pgactivate, pgdeactivate, pglazyfree, pglazyfreed,
        thp_fault_alloc, thp_collapse_alloc,
    });
    message.usage = memory.usage;
    message.usage_limit = memory.usage_limit;
    message.swap_usage = memory.swap_usage;
    message.swap_limit = memory.swap_limit;
    message.max_usage = memory.max_usage;
    message.swap_max_usage = memory.swap_max_usage;
    message.psi = field(&memory.psi, v2_psi);
    message
}

fn v2_psi(psi: &v2::PsiStats) -> m2::PSIStats {
    let data = |data: &v2::PsiData| message!(data => m2::PSIData { avg10, avg60, avg300, total });
    let mut message = m2::PSIStats::new();
    message.some = field(&psi.some, data);
    message.full = field(&psi.full, data);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_is_decoded_as_it_was_counted() {
        let metrics = v1::Metrics {
            pids: Some(PidsStat { current: 3, limit: 10 }),
            cpu: Some(v1::CpuStat {
                usage: v1::CpuUsage { total: 30, kernel: 10, user: 20, per_cpu: vec![11, 19] },
                throttling: v1::Throttle { periods: 5, throttled_periods: 2, throttled_time: 7 },
            }),
            memory: Some(v1::MemoryStat {
                stat: v1::MemoryCounters { rss: 1, total_inactive_file: 2, ..Default::default() },
                usage: v1::MemoryEntry { limit: 4, usage: 3, max: 2, failcnt: 1 },
                ..Default::default()
            }),
            blkio: Some(v1::BlkIoStat {
                io_serviced_recursive: vec![v1::BlkIoEntry {
                    op: "Read".into(),
                    device: "/dev/vda".into(),
                    major: 254,
                    minor: 1,
                    value: 9,
                }],
                ..Default::default()
            }),
            rdma: Some(RdmaStat {
                current: vec![RdmaEntry { device: "mlx5_1".into(), hca_handles: 1, hca_objects: 2 }],
                limit: vec![],
            }),
            hugetlb: vec![v1::HugetlbStat { usage: 1, max: 2, failcnt: 3, pagesize: "2MB".into() }],
            memory_oom_control: Some(v1::MemoryOomControl { oom_kill: 6, ..Default::default() }),
        };
        let any = any(&Stats::V1(Box::new(metrics))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let decoded = m1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((decoded.pids.current, decoded.pids.limit), (3, 10));
        assert_eq!((decoded.cpu.usage.total, &decoded.cpu.usage.per_cpu[..]), (30, &[11, 19][..]));
        assert_eq!((decoded.cpu.throttling.periods, decoded.cpu.throttling.throttled_time), (5, 7));
        assert_eq!((decoded.memory.rss, decoded.memory.total_inactive_file), (1, 2));
        let usage = &decoded.memory.usage;
        assert_eq!((usage.limit, usage.usage, usage.max, usage.failcnt), (4, 3, 2, 1));
        assert!(decoded.memory.swap.is_some() && decoded.memory.kernel_tcp.is_some(), "clients look without asking");
        let read = &decoded.blkio.io_serviced_recursive[0];
        assert_eq!((read.op.as_str(), read.device.as_str(), read.minor, read.value), ("Read", "/dev/vda", 1, 9));
        assert_eq!((decoded.rdma.current[0].hca_objects, decoded.rdma.limit.len()), (2, 0));
        assert_eq!((decoded.hugetlb[0].pagesize.as_str(), decoded.hugetlb[0].failcnt), ("2MB", 3));
        assert_eq!(decoded.memory_oom_control.oom_kill, 6);
    }

    #[test]
    fn v2_is_decoded_as_it_was_counted() {
        let psi =
            v2::PsiStats { some: Some(v2::PsiData { avg10: 1.5, avg60: 0.0, avg300: 0.0, total: 8 }), full: None };
        let metrics = v2::Metrics {
            pids: Some(PidsStat { current: 3, limit: u64::MAX }),
            cpu: Some(v2::CpuStat { stat: v2::CpuCounters { usage_usec: 5, ..Default::default() }, psi: Some(psi) }),
            memory: Some(v2::MemoryStat {
                stat: v2::MemoryCounters { anon: 1, workingset_refault: 2, ..Default::default() },
                usage: 3,
                usage_limit: 4,
                swap_max_usage: 5,
                ..Default::default()
            }),
            io: Some(v2::IoStat {
                usage: vec![v2::IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 }],
                psi: None,
            }),
            hugetlb: vec![v2::HugeTlbStat { current: 1, max: 2, pagesize: "1GB".into(), failcnt: 3 }],
            memory_events: Some(v2::MemoryEvents { oom_kill: 2, ..Default::default() }),
            rdma: None,
        };
        let any = any(&Stats::V2(Box::new(metrics))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let decoded = m2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((decoded.pids.current, decoded.pids.limit), (3, u64::MAX));
        assert_eq!((decoded.cpu.usage_usec, decoded.cpu.psi.some.avg10, decoded.cpu.psi.some.total), (5, 1.5, 8));
        assert!(decoded.cpu.psi.full.is_none());
        assert_eq!((decoded.memory.anon, decoded.memory.workingset_refault), (1, 2));
        assert_eq!((decoded.memory.usage, decoded.memory.usage_limit, decoded.memory.swap_max_usage), (3, 4, 5));
        let io = &decoded.io.usage[0];
        assert_eq!((io.major, io.rbytes, io.wbytes, io.rios, io.wios), (8, 1, 2, 3, 4));
        assert_eq!((decoded.hugetlb[0].pagesize.as_str(), decoded.hugetlb[0].failcnt), ("1GB", 3));
        assert_eq!(decoded.memory_events.oom_kill, 2);
        assert!(decoded.rdma.is_none());
    }
}
