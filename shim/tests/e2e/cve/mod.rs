//! The security faults in runc's history, each tried on the shim under test and named by its CVE. What each was is in runc's
//! advisories; docs/security.md says what protects against it here.
mod mounts;
mod process;

use crate::harness::direct::{Direct, Server};
use crate::harness::host::Volume;
use crate::harness::spec::Spec;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result};
use containerd_shim_protos::api::CreateTaskRequest;
use serde_json::{Value, json};
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("2016_9962", process::memory_of_the_shim).all(),
    Case::new("2016_9962_exec", process::an_exec_is_hunted),
    Case::new("2019_5736", process::own_program).kinds(&[Kind::Linux, Kind::Core]),
    Case::new("2019_5736_created", process::program_of_a_created_init).all(),
    Case::new("2019_16884", mounts::on_proc).all(),
    Case::new("2019_19921", mounts::proc_is_a_symlink).all(),
    Case::new("2021_30465", |test| mounts::swapped_target(test, mounts::FOLDER)).all(),
    Case::new("2021_30465_still", |test| mounts::linked_target(test, mounts::FOLDER)).all(),
    Case::new("2022_29162", process::inheritable).all(),
    Case::new("2023_27561", mounts::proc_is_swapped).all(),
    Case::new("2023_28642", mounts::sys_is_a_symlink).all(),
    Case::new("2024_21626", process::cwd_of_init).all(),
    Case::new("2024_21626_exec", process::cwd_of_an_exec).all(),
    Case::new("2024_21626_program", process::program_by_a_descriptor),
    Case::new("2024_45310", |test| mounts::swapped_target(test, mounts::FILE)).all(),
    Case::new("2024_45310_still", |test| mounts::linked_target(test, mounts::FILE)).all(),
    Case::new("2025_31133", mounts::null_is_a_symlink).all(),
    Case::new("2025_31133_swapped", mounts::null_is_swapped).all(),
    Case::new("2025_52565", mounts::console_is_a_symlink).all(),
    Case::new("2025_52565_swapped", mounts::console_is_swapped).all(),
    Case::new("2025_52881", process::proc_of_the_image).all(),
    // runc writes there up to the releases that have this mended.
    Case::new("2025_52881_covered", process::proc_of_the_shim).all().hybrid_only(),
    Case::new("rootfs_mounted_through_a_symlink", mounts::target_in_the_rootfs).hybrid_only(), // runc's knows no targets
];

/// How often a race is run.
const TRIES: usize = 8;

/// Creates a task in a shim of its own and has `seen` look at it, from its start on; then ends it. Returns the error when it
/// is refused.
pub fn attempt(
    test: &Test,
    id: &str,
    spec: &Spec,
    change: impl FnOnce(&mut CreateTaskRequest),
    seen: impl FnOnce(&Server, u32) -> Result<()>,
) -> Result<Option<String>> {
    let direct = Direct::new(test.containerd, test.runtime(), id)?.config(spec)?;
    let server = direct.start()?;
    let refused = match server.create_as(change) {
        Err(error) => Some(error.to_string()),
        Ok(created) => match server.start() {
            Err(error) => {
                server.delete().context("Delete")?;
                Some(error.to_string())
            }
            Ok(_) => {
                let result = seen(&server, created.pid);
                // It may have ended by itself.
                let _ = server.kill(9);
                server.wait().context("Wait")?;
                server.delete().context("Delete")?;
                result?;
                None
            }
        },
    };
    server.shutdown()?;
    direct.remove()?;
    Ok(refused)
}

/// A running Linux container beside that of the test's kind: the attacker's.
fn attacker<'a>(test: &Test<'a>, arguments: &[&str], change: impl FnOnce(&mut Value)) -> Result<Task<'a>> {
    let id = test.other("attacker");
    let mut spec = Spec::default(test.containerd, Kind::Linux, &id, arguments)?;
    change(&mut spec.value);
    let direct = Direct::new(test.containerd, test.runtime(), &id)?;
    let task = Task::create(test.containerd, Kind::Linux, direct, spec, |_| ())?;
    task.start().context("Start")?;
    Ok(task)
}

/// A spec of the test's kind for a container of that id.
pub fn spec<'a>(test: &Test<'a>, id: &str, arguments: &[&str]) -> Result<Spec<'a>> {
    Spec::default(test.containerd, test.kind, id, arguments)
}

pub fn bind(source: &Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"]})
}

/// Takes all mounts away whose destination begins with one of these.
pub fn without(spec: &mut Spec, destinations: &[&str]) -> Result<()> {
    let mounts = spec.value["mounts"].as_array_mut().context("the spec has mounts")?;
    mounts.retain(|mount| {
        let at = mount["destination"].as_str().unwrap_or_default();
        !destinations.iter().any(|destination| at.starts_with(destination))
    });
    Ok(())
}

/// A copy of the root file system of the test's image.
fn rootfs(test: &Test) -> Result<Volume> {
    Volume::rootfs(test.containerd, test.kind.image_name())
}
