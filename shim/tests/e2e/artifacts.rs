//! WebAssembly in an image's layers as it is: every form, and what is refused. containerd unpacks none of them.
use crate::harness::command::{self, Output};
use crate::harness::{Case, Kind, Test};
use crate::precompile::import;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", |test| {
        for name in ["raw-layer", "runwasi-layer"] {
            test.containerd.artifact(name)?;
            let run = test.run_image(name, &["/probe.wasm", "hello"]).id(&test.other(name));
            if test.containerd.line == "1.6" {
                // Its client wants each layer to be one of a root file system.
                run.output()?.refused(&["mismatched image rootfs and manifest layers"])?;
                continue;
            }
            let output = run.done()?;
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
    Case::new("of_an_index_webassembly_is_taken", |test| {
        // What it has for the host's platform is no module.
        let output = run(test, "in-an-index", &["/probe.wasm", "hello"])?.exits(0)?;
        ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
        Ok(())
    })
    .kinds(CORE),
    Case::new("a_layer_by_sha512", |test| {
        let layer = test.containerd.layer("sha512-layer")?;
        ensure!(layer.starts_with("sha512:"), "{layer}");
        // An import keeps content by SHA-256 only; a pull says which digest it expects.
        let module = fs::read(test.containerd.rootfs("wasm-core").join("probe.wasm")).context("reading the probe")?;
        let mut ingest = test.ctr(["content", "ingest", "--expected-digest", &layer, "sha512-layer"]).command();
        let ingested = command::output(&mut ingest, &module)?;
        if ingested.code != 0 {
            // containerd before 2.3 computes no other digest than SHA-256.
            return ingested.refused(&["digest", "sha512"]).map(drop);
        }
        let output = run(test, "sha512-layer", &["/probe.wasm", "hello"])?.exits(0)?;
        ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
        Ok(())
    })
    .kinds(CORE),
    Case::new("an_ordinary_image_of_its_own_platform", |test| {
        let platform = ["--platform", "wasi/wasm"];
        import(test.containerd, "platform-file", &platform)?;
        test.run_image("platform-file", &[]).flags(&platform).done().map(drop)
    })
    .kinds(CORE),
    Case::new("arguments_are_the_specs", |test| {
        // The probe looks at those behind the first one, which is whatever the spec says.
        let output = run(test, "cncf-module", &["any name", "args", "a", "b c"])?.exits(0)?;
        ensure!(output.lines() == ["any name", "args", "a", "b c"], "{output}");
        Ok(())
    })
    .kinds(CORE),
    Case::new("without_arguments_it_has_the_modules_name", |test| {
        for (name, title) in [("name-with-title", "printer.wasm"), ("name-without-title", "module.wasm")] {
            let output = run(test, name, &[])?.exits(0)?;
            ensure!(output.stdout == format!("{title}\0"), "{output}");
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("the_entrypoint_names_a_title_and_a_function", |test| {
        for (program, says) in [
            ("/function.wasm", "start\n"),
            ("function.wasm#greet", "greet\n"),
            ("/probe.wasm", "hello from WebAssembly\n"),
        ] {
            let output = run(test, "two-layers", &[program, "hello"])?.exits(0)?;
            ensure!(output.stdout == says, "{program}: {output}");
        }
        let output = run(test, "two-layers", &["/other.wasm"])?;
        output.refused(&["2 WebAssembly layers", "probe.wasm, function.wasm", "/other.wasm"]).map(drop)
    })
    .kinds(CORE),
    Case::new("an_annotation_says_wasm", |test| {
        let annotations = json!({"run.oci.handler": "wasm"});
        let output = run_annotated(test, "cncf-module", &["/probe.wasm", "hello"], annotations.clone())?.exits(0)?;
        ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
        // Neither in the container nor in the image.
        run_annotated(test, "wasm-platform", &["/probe.wasm"], annotations)?
            .refused(&["/probe.wasm", "module not found", "run.oci.handler=wasm"])
            .map(drop)
    })
    .kinds(CORE),
    Case::new("an_annotation_says_native", |test| {
        let annotations = json!({"io.containerd.hybrid.executor": "native"});
        run_annotated(test, "cncf-module", &["/probe.wasm"], annotations)?.refused(&["no such file"]).map(drop)
    })
    .kinds(CORE),
    Case::new("the_image_says_what_it_is", |test| {
        for (name, words) in [
            ("named-wasm", &["/missing", "module not found", "run.oci.handler=wasm"][..]),
            ("named-badly", &["run.oci.handler", "\"vm\""]),
            ("wasm-platform", &["/missing", "module not found", "wasip1/wasm"]),
        ] {
            run(test, name, &["/missing"])?.refused(words).with_context(|| name)?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("what_cannot_be_run_is_refused", |test| {
        for (name, words) in [
            ("not-wasm", &["module.wasm", "not a valid module"][..]),
            ("unknown-config", &["unknown", "application/x-unknown"]),
            ("spin", &["Spin", "application/vnd.fermyon.spin.application.v1+config"]),
            ("huge-manifest", &["no more than 4194304 are read"]),
        ] {
            run(test, name, &["/probe.wasm"])?.refused(words).with_context(|| name)?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("a_layer_that_is_not_there", |test| {
        let layer = test.containerd.layer("missing")?;
        test.ctr(["content", "rm", &layer]).done()?;
        run(test, "missing", &["/a.wasm"])?.refused(&[&layer, "not found"]).map(drop)
    })
    .kinds(CORE),
    Case::new("a_layer_that_is_another", |test| {
        let layer = test.containerd.layer("broken")?;
        let blob = test.containerd.blob(&layer);
        let mut content = fs::read(&blob).context("reading the layer")?;
        let last = content.last_mut().context("the layer is not empty")?;
        *last ^= 1;
        fs::write(&blob, content).context("changing the layer")?;
        run(test, "broken", &["/a.wasm"])?.refused(&[&layer, "its content has the digest"]).map(drop)
    })
    .kinds(CORE),
    Case::new("an_ordinary_program_asks_nothing", |test| {
        let (socket, asked) = listener(&test.containerd.fresh_path("socket"))?;
        let life = |id: &str, program: &str| -> Result<Option<String>> {
            let spec = test.spec(&[])?.set("/process/args", json!([program, "hello"]))?;
            let direct = crate::harness::direct::Direct::new(test.containerd, test.runtime(), id)?.config(&spec)?;
            let server = direct.started_with(|command| at_address(command, &socket))?;
            let created = server.create();
            if created.is_ok() {
                server.start().context("Start")?;
                server.wait().context("Wait")?;
                server.delete().context("Delete")?;
            }
            server.shutdown()?;
            direct.remove()?;
            Ok(created.err().map(|error| error.to_string()))
        };
        ensure!(life(&test.other("there"), test.kind.program())?.is_none(), "an ordinary program is refused");
        ensure!(asked.load(Ordering::SeqCst) == 0, "its image was asked for");
        let error = life(&test.other("missing"), "/missing")?.context("a missing program is not refused")?;
        ensure!(asked.load(Ordering::SeqCst) > 0, "nothing was asked: {error}");
        ensure!(error.contains(&socket.display().to_string()), "{error}");
        Ok(())
    })
    .all()
    .hybrid_only(),
];

const CORE: &[Kind] = &[Kind::Core];

/// Counts connections to a socket, and ends each at once.
fn listener(path: &Path) -> Result<(PathBuf, Arc<AtomicUsize>)> {
    let (listener, asked) = (UnixListener::bind(path).context("binding a socket")?, Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    thread::spawn(move || listener.incoming().flatten().for_each(|_| _ = count.fetch_add(1, Ordering::SeqCst)));
    Ok((path.to_owned(), asked))
}

/// The same command for a containerd at another address, whose events go where they went.
fn at_address(command: &mut Command, address: &Path) {
    let mut other = Command::new(command.get_program());
    let mut is_address = false;
    for argument in command.get_args() {
        other.arg(if is_address { address.as_os_str() } else { argument });
        is_address = argument == "-address";
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        other.current_dir(folder);
    }
    *command = other;
}

/// Runs a container of an artifact with these arguments and an empty root.
pub fn run(test: &Test, name: &str, arguments: &[&str]) -> Result<Output> {
    run_annotated(test, name, arguments, json!({}))
}

fn run_annotated(test: &Test, name: &str, arguments: &[&str], annotations: serde_json::Value) -> Result<Output> {
    let image = test.containerd.artifact(name)?;
    let root = EmptyRoot::new(test)?;
    let spec = test.spec(&[])?.set("/process/args", json!(arguments))?.set("/annotations", annotations)?;
    let spec = spec.set("/root/path", json!(root.0))?;
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
        DirBuilder::new().mode(0o755).create(&path).context("making an empty root")?;
        Ok(EmptyRoot(path))
    }
}

impl Drop for EmptyRoot {
    fn drop(&mut self) {
        // With what the runtime has made in it to mount on.
        let _ = fs::remove_dir_all(&self.0);
    }
}
