//! The terminal of a container's first process.

use std::os::fd::AsFd;

use oci_spec::runtime::Process;
use rustix::mount::OpenTreeFlags;

use super::resolve::Make;
use super::step::{Step, Target};
use super::user;
use super::user_namespace::IdMappings;
use crate::Kind;
use crate::console::{self, Console};
use crate::error::{OrKind, Result};

/// Makes the terminal: in the container's devpts, whose mount is one of the steps, or where it has none of its own in the
/// host's.
pub(super) fn terminal(
    process: &Process,
    mappings: Option<&IdMappings>,
    steps: &mut Vec<Step>,
) -> Result<(Step, Option<Console>)> {
    let is_mounted_there = |step: &Step| match step {
        Step::MountNew { filesystem, at } => filesystem.fstype.as_c_str() == c"devpts" && is_devpts(at),
        Step::AttachNew { at, .. } | Step::Bind { at, .. } => is_devpts(at),
        _ => false,
    };
    if steps.iter().any(is_mounted_there) {
        // By the child: it is not there yet.
        steps.push(Step::OpenTerminal { size: console::size(process)? });
        return Ok((Step::Terminal { slave: None, uid: process.user().uid() }, None));
    }
    let devpts = steps.iter().rev().find_map(|step| match step {
        Step::Attach { tree, at } if is_devpts(at) => Some(tree.as_fd()),
        _ => None,
    });
    let (console, slave, mount) = match devpts {
        Some(devpts) => {
            let (console, slave) = Console::open(devpts)?;
            let mount = Step::Console(user::above(&slave)?);
            (console, slave, mount)
        }
        None => {
            let (console, slave) = Console::open_on_host()?;
            let tree = rustix::mount::open_tree(
                &slave,
                c"",
                OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
            );
            let tree = tree.or_kind(Kind::Internal, || "process.terminal: copy its mount")?;
            let at = Target { path: c"/dev/console".to_owned(), make: Make::File, no_symlinks: true };
            (console, slave, Step::Attach { tree, at })
        }
    };
    console.resize_to(process)?;
    steps.push(mount);
    Ok((user::terminal(process, mappings, &slave)?, Some(console)))
}

fn is_devpts(at: &Target) -> bool {
    at.path.as_c_str() == c"/dev/pts"
}
