//! Limits and what is measured, as the kubelet sets and reads them; and the security context.
use crate::api::*;
use crate::harness::case::CaseOf;
use crate::pod::{Case, Container, Test};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

pub const CASES: &[Case] = &[
    CaseOf::new("statistics", statistics as _).all(),
    CaseOf::new("limits_and_an_update", update as _).all(),
    CaseOf::new("out_of_memory", out_of_memory as _),
    CaseOf::new("a_user_and_a_profile", security as _),
    CaseOf::new("a_readonly_root", readonly_root as _).all(),
];

fn statistics(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.run(test.kind, "main", &["spin"])?;
    container.logged("ready")?;
    let stats = container.stats()?;
    let time = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).context("no processor time")?.value;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).context("no memory")?.value;
    ensure!(time > 0 && memory > 0, "{time} ns, {memory} bytes");
    Ok(())
}

const MIB: i64 = 1 << 20;

fn update(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let limits = |megabytes| LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: megabytes * MIB,
        ..Default::default()
    };
    let container = pod.create(test.kind, "main", &["pause"], |config| {
        config.linux.get_or_insert_default().resources = Some(limits(256));
    })?;
    container.start()?;
    container.logged("ready")?;
    ensure!(memory_limit(&container)? == 256 * MIB, "at first: {}", memory_limit(&container)?);
    container.update(limits(200))?;
    ensure!(memory_limit(&container)? == 200 * MIB, "after the update: {}", memory_limit(&container)?);
    Ok(())
}

/// The limit in the container's cgroup, in bytes.
fn memory_limit(container: &Container) -> Result<i64> {
    for name in ["memory/test", "test"] {
        for file in ["memory.limit_in_bytes", "memory.max"] {
            let path: PathBuf = Path::new("/sys/fs/cgroup").join(name).join(&container.id).join(file);
            if let Ok(text) = fs::read_to_string(&path) {
                return text.trim().parse().with_context(|| format!("{}: {text}", path.display()));
            }
        }
    }
    anyhow::bail!("no cgroup of {}", container.id)
}

fn out_of_memory(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &["eat", "64"], |config| {
        let limit = LinuxContainerResources { memory_limit_in_bytes: 16 * MIB, ..Default::default() };
        config.linux.get_or_insert_default().resources = Some(limit);
    })?;
    container.start()?;
    let status = container.ended()?;
    ensure!(status.exit_code == 137 && status.reason == "OOMKilled", "{status:?}");
    Ok(())
}

fn security(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &["id"], |config| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(Int64Value { value: 1234 });
        security.no_new_privs = true;
        security.seccomp = Some(SecurityProfile::default());
    })?;
    container.start()?;
    ensure!(container.ended()?.exit_code == 0, "{:?}", container.status()?);
    let log = container.log()?;
    for line in ["Uid:\t1234\t1234\t1234\t1234", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        ensure!(log.contains(line), "no {line:?} in\n{log}");
    }
    Ok(())
}

fn readonly_root(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &["write", "/file", "text"], |config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().readonly_rootfs = true;
    })?;
    container.start()?;
    let (status, log) = (container.ended()?, container.log()?);
    ensure!(status.exit_code != 0 && log.contains("/file: "), "{status:?}\n{log}");
    Ok(())
}
