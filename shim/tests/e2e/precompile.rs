//! `precompile`: what it has compiled is what containers are started from.
use crate::artifacts;
use crate::harness::command::{Output, Running, output};
use crate::harness::{Case, Containerd, Kind, NAMESPACE, Run, Test, eventually};
use crate::options::config_file;
use crate::restart::Own;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("a_file", |test| {
        let folder = test.containerd.fresh_path("modules");
        fs::create_dir(&folder).context("making a folder")?;
        let file = folder.join("file.wasm");
        fs::write(&file, test_images::labelled("ahead of time, from a file")?).context("writing a module")?;
        let output = precompile(test, &[&file.display().to_string()])?.exits(0)?;
        let kept = Kept::of(&output, &file.display().to_string())?;
        let spec = test.spec(&[])?.set("/process/args", json!(["/file.wasm"]))?.set("/root/path", json!(folder))?;
        spec.run()?.done()?;
        kept.unchanged()?;
        fs::remove_dir_all(&folder).context("removing the folder")
    })
    .kinds(CORE),
    Case::new("a_layer", |test| {
        let image = test.containerd.artifact("ahead-layer")?;
        let kept = Kept::of(&of_images(test, &[&image])?.exits(0)?, "ahead.wasm")?;
        // It is not even read: the code is found by the layer's digest.
        let layer = test.containerd.layer("ahead-layer")?;
        test.ctr(["content", "rm", &layer]).done()?;
        artifacts::run(test, "ahead-layer", &["/ahead.wasm"])?.exits(0)?;
        kept.unchanged()
    })
    .kinds(CORE),
    Case::new("an_entrypoint", |test| {
        let image = import(test.containerd, "ahead-file", &[])?;
        let kept = Kept::of(&of_images(test, &[&image])?.exits(0)?, "/ahead.wasm")?;
        test.run_image("ahead-file", &[]).done()?;
        kept.unchanged()?;
        // Those of other tests come and go.
        eventually("no view is left", || {
            let views = test.ctr(["snapshots", "list"]).done()?;
            Ok((!views.stdout.contains("hybrid-precompile")).then_some(()))
        })
    })
    .kinds(CORE),
    Case::new("an_image_without_webassembly_has_none", |test| {
        let output = of_images(test, &["localhost/hybrid/linux:latest"])?.exits(0)?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    })
    .kinds(CORE),
    Case::new("what_is_wrong_is_said", |test| {
        let file = test.containerd.fresh_path("no-module");
        fs::write(&file, "no module").context("writing a file")?;
        let name = file.display().to_string();
        let image = test.containerd.artifact("not-wasm")?;
        for (result, words) in [
            (precompile(test, &[&name])?, &[name.as_str()][..]),
            (precompile(test, &["/missing.wasm"])?, &["/missing.wasm"]),
            (of_images(test, &["localhost/missing:latest", &image])?, &["localhost/missing:latest", "not-wasm"]),
            (precompile(test, &["--image", "--address", "/missing.sock", "i"])?, &["/missing.sock"]),
        ] {
            ensure!(result.code == 1, "{result}");
            result.refused(words)?;
        }
        let usage = precompile(test, &["--no-such-option"])?.exits(2)?.refused(&["--no-such-option", "Usage:"])?;
        ensure!(usage.stdout.is_empty(), "{usage}");
        ensure!(precompile(test, &["--help"])?.exits(0)?.stdout.starts_with("Usage:"), "no usage");
        fs::remove_file(&file).context("removing a file")
    })
    .kinds(CORE),
    Case::new("with_the_handlers_proposals", |test| {
        let file = test.containerd.rootfs("wasm-cases").join("wide.wasm").display().to_string();
        precompile(test, &[&file])?.refused(&["/wide.wasm", "wide"])?;
        let output = precompile(test, &["--proposals", "wide-arithmetic", "--cache-size=1Gi", &file])?.exits(0)?;
        let kept = Kept::of(&output, &file)?;
        let config = config_file(test, "WasmProposals = \"wide-arithmetic\"\n")?;
        test.run_image("wasm-cases", &["/wide.wasm"]).flags(&["--runtime-config-path", &config]).done()?;
        kept.unchanged()
    })
    .kinds(CORE),
    Case::new("what_is_there_and_what_is_pulled", watched).kinds(CORE),
];

const CORE: &[Kind] = &[Kind::Core];

/// By one that watches a containerd of the test's own, and goes on when that is started again.
fn watched(test: &Test) -> Result<()> {
    let mut own = Own::new(test)?;
    let compiled = |line: String| Kept::at(line.split(' ').next_back().context("a folder")?);
    let mut command = command(test, &own.containerd);
    let address = own.containerd.address().display().to_string();
    let watch = Running::spawn(command.args(["--watch", "--namespace", NAMESPACE, "--address", &address]))?;
    // Pulled before.
    let kept = compiled(line_of(&watch, "hybrid/wasm-core:latest")?)?;
    Run::image(&own.containerd, &Kind::Core.image(), &test.other("before")).done()?;
    kept.unchanged()?;
    // An ordinary image, which is there before its layers are unpacked.
    import(&own.containerd, "watched-file", &[])?;
    let kept = compiled(line_of(&watch, "hybrid/watched-file:latest")?)?;
    Run::image(&own.containerd, "localhost/hybrid/watched-file:latest", &test.other("pulled")).done()?;
    kept.unchanged()?;
    // One whose module is a layer, while the watch knows nothing of containerd.
    watch.signal(Signal::STOP)?;
    own.restart(Signal::TERM)?;
    let image = own.containerd.artifact("watched-layer")?;
    watch.signal(Signal::CONT)?;
    drop(compiled(line_of(&watch, &image)?)?);
    // What it knew before is not looked at again.
    let lines = watch.text().lines().filter(|line| line.contains("hybrid/wasm-core:latest")).count();
    ensure!(lines == 1, "{lines} lines about one image: {}", watch.text());
    watch.signal(Signal::TERM)?;
    watch.finish()?.exits(0)?;
    own.stop()
}

/// The line about an image, once there is one.
fn line_of(watch: &Running, image: &str) -> Result<String> {
    watch.wait_for(&format!("{image} "))?;
    eventually("the whole line", || {
        let text = watch.text();
        let (lines, _) = text.rsplit_once('\n').unwrap_or_default();
        Ok(lines.lines().find(|line| line.contains(&format!("{image} "))).map(str::to_owned))
    })
}

fn command(test: &Test, containerd: &Containerd) -> Command {
    let mut command = Command::new(containerd.shim(test.runtime()));
    command.arg("precompile").env("HYBRID_WASM_CACHE", containerd.wasm_cache());
    command
}

fn precompile(test: &Test, arguments: &[&str]) -> Result<Output> {
    output(command(test, test.containerd).args(arguments), b"")
}

fn of_images(test: &Test, images: &[&str]) -> Result<Output> {
    let address = test.containerd.address().display().to_string();
    let arguments = ["--namespace", NAMESPACE, "--address", &address, "--image"];
    precompile(test, &[&arguments[..], images].concat())
}

/// Imports an image of `test_images` that no other test has run, with flags of `ctr`'s, and returns its reference.
pub fn import(containerd: &Containerd, name: &str, flags: &[&str]) -> Result<String> {
    let images = test_images::ahead_of_time()?;
    let image = images.iter().find(|image| image.name() == name).with_context(|| format!("no image {name}"))?;
    let archive = image.save(containerd.folder())?;
    let import = flags.iter().fold(containerd.ctr(["image", "import"]), |import, flag| import.arg(flag));
    import.arg(archive).done()?;
    Ok(image.reference())
}

/// An entry of the cache, as it was when it was made.
struct Kept {
    code: PathBuf,
    made: (u64, i64, i64),
}

impl Kept {
    /// From the line about this module.
    fn of(output: &Output, module: &str) -> Result<Kept> {
        let mut lines = output.stdout.lines().map(|line| line.split_once(' '));
        let found = lines.find_map(|line| line.filter(|(name, _)| *name == module).map(|(_, folder)| folder));
        Kept::at(found.with_context(|| format!("no line about {module}: {output}"))?)
    }

    fn at(folder: &str) -> Result<Kept> {
        let code = Path::new(folder).join("code");
        let made = Kept::look(&code)?;
        Ok(Kept { code, made })
    }

    /// Its file and when it was written.
    fn look(code: &Path) -> Result<(u64, i64, i64)> {
        let metadata = fs::metadata(code).with_context(|| format!("looking at {}", code.display()))?;
        Ok((metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
    }

    fn unchanged(&self) -> Result<()> {
        let now = Kept::look(&self.code)?;
        ensure!(now == self.made, "{} was made again", self.code.display());
        Ok(())
    }
}
