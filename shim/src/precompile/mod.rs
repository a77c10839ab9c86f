//! `precompile`: compiles modules into the cache before a container needs them.

mod command;
mod watch;

use crate::RUNTIME;
use crate::containerd::{Access, Images, View};
use anyhow::anyhow;
use command::{Command, Request, USAGE};
use executors::wasm::{self, Precompiled, Snapshot};
use executors::{Error, Kind, Result, WasmOptions};
use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;

/// The exit code for a command line that is wrong.
const WRONG_USAGE: u8 = 2;

/// Runs the command with the arguments behind its name. What was compiled, or had been, is a line on stdout each: the module's
/// name, and the folder with its code.
pub fn run(args: &[OsString]) -> ExitCode {
    let Request { command, access, options } = match Request::parse(args) {
        Ok(Some(request)) => request,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            complain(format!("precompile: {error:#}"));
            eprint!("{USAGE}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let done = match command {
        Command::Files(files) => all(&files, |file| Ok(vec![wasm::precompile_file(file.as_ref(), &options)?])),
        Command::Images(images) => all(&images, |image| of_image(&access, image, None, &mut None, &options)),
        Command::Watch(namespaces) => {
            watch::run(&access, &namespaces, &options);
            true
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Compiles each, whatever becomes of the others. Returns whether all could be.
fn all<T>(wanted: &[T], compile: impl Fn(&T) -> Result<Vec<Precompiled>>) -> bool {
    let mut done = true;
    for one in wanted {
        match compile(one) {
            Ok(modules) => modules.iter().for_each(report),
            Err(error) => {
                complain(error);
                done = false;
            }
        }
    }
    done
}

/// Compiles what an image has. Its layers may have been unpacked by this snapshotter; those that no snapshotter has are
/// `missing`, and that is an error.
fn of_image(
    access: &Access,
    name: &str,
    snapshotter: Option<&str>,
    missing: &mut Option<Snapshot>,
    options: &WasmOptions,
) -> Result<Vec<Precompiled>> {
    let images = Images::named(access, name);
    let mut view = None;
    let rootfs = |snapshot: &Snapshot| match View::of(&images, snapshot, snapshotter)? {
        Some(found) => Ok(view.insert(found).mounts()),
        None => {
            *missing = Some(snapshot.clone());
            Err(Error::new(Kind::FailedPrecondition, anyhow!("its layers are not unpacked")))
        }
    };
    wasm::precompile_image(&images, rootfs, options).map_err(|error| error.context(format!("image {name}")))
}

fn report(module: &Precompiled) {
    println!("{} {}", module.name, module.folder.display());
}

fn complain(error: impl Display) {
    eprintln!("{RUNTIME}: {error}");
}
