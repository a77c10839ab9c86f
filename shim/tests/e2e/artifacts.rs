//! WebAssembly in an image's layers as it is: every form, and what is refused. containerd unpacks none of them.
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", |test| {
        for (number, (name, arguments)) in
            [("raw-layer", &["/probe.wasm", "hello"]), ("runwasi-layer", &["/probe.wasm", "hello"])]
                .into_iter()
                .enumerate()
        {
            let image = test.containerd.artifact(name)?;
            let run = test.run_image(name, arguments).id(&test.other(&number.to_string()));
            let output = run.done().with_context(|| image)?;
            ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("every_form_by_the_api", |test| {
        for name in ["raw-layer", "runwasi-layer", "cncf-module", "cncf-component", "wasm-to-oci", "two-layers"] {
            let output = run(test, name, &["/probe.wasm", "hello"])?.exits(0)?;
            ensure!(output.stdout == "hello from WebAssembly\n", "{name}: {output}");
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("arguments_are_the_specs", |test| {
        let output = run(test, "cncf-module", &["any name", "args", "a", "b c"])?.exits(0)?;
        ensure!(output.lines() == ["any name", "args", "a", "b c"], "{output}");
        Ok(())
    })
    .kinds(CORE),
];

const CORE: &[Kind] = &[Kind::Core];

/// Runs a container of an artifact with these arguments and an empty root.
fn run(test: &Test, name: &str, arguments: &[&str]) -> Result<crate::harness::command::Output> {
    let image = test.containerd.artifact(name)?;
    let root = EmptyRoot::new(test)?;
    let spec = test.spec(&[])?.set("/process/args", json!(arguments))?.set("/root/path", json!(root.0))?;
    let id = test.other(name);
    test.containerd.create_container(&id, &image, &spec)?;
    let output = test.ctr(["tasks", "start", &id]).output()?;
    test.ctr(["containers", "delete", &id]).done()?;
    Ok(output)
}

/// A root file system with nothing in it.
struct EmptyRoot(PathBuf);

impl EmptyRoot {
    fn new(test: &Test) -> Result<EmptyRoot> {
        let path = test.containerd.fresh_path("empty");
        fs::DirBuilder::new().mode(0o755).create(&path).context("making an empty root")?;
        Ok(EmptyRoot(path))
    }
}

impl Drop for EmptyRoot {
    fn drop(&mut self) {
        // The runtime makes what is mounted on in it.
        let _ = fs::remove_dir_all(&self.0);
    }
}
