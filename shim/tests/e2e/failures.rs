//! What fails in the middle of a create: the error names the step and says why, the shim keeps nothing of it, and the same
//! shim makes a container that can be made. (Each step by itself: executors/src/native/failures.rs.)
use crate::harness::direct::Server;
use crate::harness::host::Volume;
use crate::harness::spec::Spec;
use crate::harness::{Case, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("limits_that_the_kernel_refuses", |test| {
        fails(test, &["linux.resources.cpu"], |spec, _| {
            set(spec, "/linux/resources", json!({"cpu": {"cpus": "9999"}}))
        })?;
        fails(test, &["linux.resources.cpu"], |spec, _| {
            set(spec, "/linux/resources", json!({"cpu": {"quota": 1, "period": 1}}))
        })
    })
    .all()
    .hybrid_only(), // runc names no field
    Case::new("source_missing_behind_others", |test| {
        fails(test, &["mounts: /data", "/no/such/source"], |spec, volume| {
            let last = bind("/no/such/source".as_ref(), "/data");
            push(spec, (0..20).map(|n| bind(volume.path(), &format!("/many/{n}"))).chain([last]))
        })
    })
    .all()
    .hybrid_only(),
    Case::new("target_in_what_is_read_only", |test| {
        fails(test, &["mounts", "/volume/missing/deeper", "read-only file system"], |spec, volume| {
            let mut first = bind(volume.path(), "/volume");
            first["options"] = json!(["rbind", "ro"]);
            push(spec, [first, bind(volume.path(), "/volume/missing/deeper")])
        })
    })
    .all()
    .hybrid_only(),
    Case::new("target_of_another_kind", |test| {
        // A folder onto a file.
        fails(test, &["mounts", "/etc/passwd", "invalid argument"], |spec, volume| {
            push(spec, [bind(volume.path(), "/etc/passwd")])
        })
    })
    .all()
    .hybrid_only(),
    Case::new("no_descriptors_left", no_descriptors).all().hybrid_only(),
    Case::new("ten_thousand_mounts", |test| {
        let task = created(test, |spec, _| {
            let tmpfs =
                |n| json!({"destination": format!("/many/{n}"), "type": "tmpfs", "source": "tmpfs", "options": []});
            push(spec, (0..10_000).map(tmpfs))
        })?;
        // As many as the kernel and the limit of descriptors allow.
        if let Some(error) = task {
            ensure!(error.contains("mounts: ") && error.contains("/many/"), "no mount named: {error}");
        }
        Ok(())
    })
    .hybrid_only(), // runc takes minutes
    Case::new("contradictions", |test| {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        fails(test, &["linux.uidMappings"], |spec, _| set(spec, "/linux/uidMappings", mapping.clone()))?;
        fails(test, &["linux.sysctl"], |spec, _| set(spec, "/linux/sysctl", json!({"kernel.core_pattern": "x"})))?;
        fails(test, &["mounts"], |spec, volume| push(spec, [bind(volume.path(), "/..")]))?;
        fails(test, &["linux.devices"], |spec, _| {
            set(spec, "/linux/devices", json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]))
        })?;
        fails(test, &["process"], |spec, _| set(spec, "/process/args", json!(["a\0b"])))
    })
    .all()
    .hybrid_only(),
];

type Change<'a> = &'a dyn Fn(&mut Spec, &Volume) -> Result<()>;

fn bind(source: &std::path::Path, at: &str) -> Value {
    json!({"destination": at, "type": "bind", "source": source, "options": ["rbind", "rw"]})
}

fn set(spec: &mut Spec, pointer: &str, value: Value) -> Result<()> {
    let (parent, last) = pointer.rsplit_once('/').context("a pointer begins with /")?;
    spec.value.pointer_mut(parent).context("no such place")?[last] = value;
    Ok(())
}

fn push(spec: &mut Spec, mounts: impl IntoIterator<Item = Value>) -> Result<()> {
    spec.value["mounts"].as_array_mut().context("mounts")?.extend(mounts);
    Ok(())
}

fn fails(test: &Test, words: &[&str], change: impl Fn(&mut Spec, &Volume) -> Result<()>) -> Result<()> {
    let error = created(test, change)?.context("it was created")?;
    ensure!(words.iter().all(|word| error.contains(word)), "{error} lacks one of {words:?}");
    Ok(())
}

fn descriptors(shim: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{shim}/fd")).context("listing the shim's descriptors")?.count())
}

/// Creates a container from a changed spec, and the error if that fails; then, in the same shim, one that is not changed.
fn created(test: &Test, change: impl Fn(&mut Spec, &Volume) -> Result<()>) -> Result<Option<String>> {
    created_by(test, &change, |_, _| Ok(()))
}

fn created_by(test: &Test, change: Change, around: impl Fn(u32, bool) -> Result<()>) -> Result<Option<String>> {
    let volume = Volume::new(test.containerd)?;
    let direct = test.direct()?;
    let mut spec = test.spec(&["pause"])?;
    let good = spec.value.to_string();
    let direct = direct.raw_config(&good)?;
    let server = direct.start()?;
    // Once, for what stays open from the first create on.
    life(&server)?;
    let shim = server.connected().context("Connect")?.shim_pid;
    change(&mut spec, &volume)?;
    let direct = direct.config(&spec)?;
    let before = descriptors(shim)?;
    around(shim, true)?;
    let error = match server.create() {
        Ok(_) => {
            server.delete().context("Delete")?;
            None
        }
        Err(error) => Some(error.to_string()),
    };
    around(shim, false)?;
    let now = descriptors(shim)?;
    ensure!(now <= before, "the shim has {now} descriptors open, before it had {before}");
    let direct = direct.raw_config(&good)?;
    life(&server)?;
    server.shutdown()?;
    direct.remove()?;
    Ok(error)
}

fn life(server: &Server) -> Result<()> {
    server.create().context("Create")?;
    server.start().context("Start")?;
    server.kill(9).context("Kill")?;
    server.wait().context("Wait")?;
    server.delete().context("Delete")?;
    Ok(())
}

/// The shim may open some descriptors more, but not enough for all the mounts.
fn no_descriptors(test: &Test) -> Result<()> {
    let limit = |shim: u32, on: bool| {
        let number = if on { descriptors(shim)? + 30 } else { 1024 };
        let mut prlimit = Command::new("prlimit");
        let status = prlimit.args(["--pid", &shim.to_string(), &format!("--nofile={number}:")]).status();
        ensure!(status.context("running prlimit")?.success(), "prlimit failed");
        Ok(())
    };
    let many =
        |spec: &mut Spec, volume: &Volume| push(spec, (0..100).map(|n| bind(volume.path(), &format!("/many/{n}"))));
    let error = created_by(test, &many, limit)?.context("it was created")?;
    ensure!(error.contains("mounts: ") && error.contains("oo many open files"), "{error}");
    Ok(())
}
