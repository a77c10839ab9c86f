//! What of a program is called, and what it begins with.
use crate::harness::command::Output;
use crate::harness::{Case, Kind, Test};
use crate::wasm_service::Service;
use anyhow::{Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case::new("functions_of_a_component", |test| {
        let run = |id: &str, function: &str| {
            let run = test.run_image("wasm-cases", &[&format!("/folder.wasm#{function}")]);
            run.id(&test.other(id)).output()
        };
        let output = run("greet", "greet")?.exits(0)?;
        ensure!(output.stdout == "greet\n", "{output}");
        run("trap", "give-up")?.exits(134)?.refused(&["unreachable", "/folder.wasm"])?;
        for (id, function) in [("missing", "no-such"), ("numbers", "add"), ("interface", "wasi:cli/run@0.2.0")] {
            run(id, function)?.refused(&["/folder.wasm", &format!("no function {function:?}"), "exported"])?;
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("of_several_entry_points_the_first_is_called", |test| {
        // The others trap.
        let service = Service::start_of(test, "/several-0-2.wasm", &[])?;
        ensure!(service.get("/")?.ends_with("\r\n\r\nhello\n"), "no answer of the service of WASI 0.2");
        service.ends("TERM", 0)?;
        let service = Service::start_of(test, "/several-0-3.wasm", &[])?;
        ensure!(service.get("/a")?.ends_with("\r\n\r\nlocalhost/a\n"), "no answer of the service of WASI 0.3");
        service.ends("TERM", 0)
    })
    .kinds(CASE),
    Case::new("a_trap_names_the_line", |test| {
        for (id, module) in [("core", "/lines.wasm"), ("component", "/lines-component.wasm")] {
            let output = test.run_image("wasm-cases", &[module]).id(&test.other(id)).output()?.exits(134)?;
            output.refused(&["integer divide by zero", "give_up", "lines.c:4"])?;
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("components_begin_in_the_current_folder", |test| {
        for (number, (folder, printed)) in [("/tmp", "/tmp\n"), ("/", "none\n")].into_iter().enumerate() {
            let output = in_folder(test, &number.to_string(), folder, &["/folder.wasm"])?.exits(0)?;
            ensure!(output.stdout == printed, "in {folder}: {output}");
        }
        in_folder(test, "wasi03", "/tmp", &["/socket.wasm", "in", "/tmp"])?.exits(0)?;
        in_folder(test, "another", "/tmp", &["/socket.wasm", "in", "/etc"])?.exits(1).map(drop)
    })
    .kinds(CASE),
    Case::new("wasi_0_1_has_no_current_folder", |test| {
        let cat = |id: &str, path: &str| {
            test.spec(&["cat", path])?.set("/process/cwd", json!("/etc"))?.run()?.id(&test.other(id)).output()
        };
        let output = cat("from-the-root", "etc/passwd")?.exits(0)?;
        ensure!(output.stdout.contains("root"), "{output}");
        cat("from-the-folder", "passwd")?.exits(1).map(drop)
    })
    .kinds(CASE),
];

const CASE: &[Kind] = &[Kind::Core];

/// Runs a program with a current folder.
fn in_folder(test: &Test, id: &str, folder: &str, arguments: &[&str]) -> Result<Output> {
    let spec = test.spec(&[])?.set("/process/args", json!(arguments))?.set("/process/cwd", json!(folder))?;
    let spec = spec.set("/root/path", json!(test.containerd.rootfs("wasm-cases")))?;
    spec.run()?.id(&test.other(id)).output()
}
