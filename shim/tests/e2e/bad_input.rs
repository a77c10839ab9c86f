//! What cannot be run is refused with one clear sentence that names the container and the cause, and leaves nothing.
use crate::harness::command::Output;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case::new("args_empty", |test| {
        clear(test, test.spec(&[])?.set("/process/args", json!([]))?.run()?.output()?, &["args"])
    }),
    Case::new("program_missing", |test| {
        for (number, program) in ["/no/such/program", "no-such-program", "./no-such-program"].iter().enumerate() {
            let spec = test.spec(&[])?.set("/process/args", json!([program]))?;
            clear(test, spec.run()?.id(&test.other(&number.to_string())).output()?, &[program])?;
        }
        Ok(())
    }),
    Case::new("program_not_executable", |test| {
        let spec = test.spec(&[])?.set("/process/args", json!(["/bin/not-executable"]))?;
        clear(test, spec.run()?.output()?, &["/bin/not-executable", "permission denied"])
    }),
    Case::new("program_of_no_format", |test| {
        let spec = test.spec(&[])?.set("/process/args", json!(["/bin/no-format"]))?;
        clear(test, spec.run()?.output()?, &["/bin/no-format", "xec format error"])
    }),
    Case::new("program_is_a_folder", |test| {
        let spec = test.spec(&[])?.set("/process/args", json!(["/etc"]))?;
        clear(test, spec.run()?.output()?, &["/etc"])
    }),
    Case::new("cwd_relative", |test| {
        let spec = test.spec(&["pwd"])?.set("/process/cwd", json!("tmp"))?;
        clear(test, spec.run()?.output()?, &["cwd"])
    }),
    Case::new("user_namespace_without_mappings", |test| {
        let mut spec = test.spec(&["id"])?;
        spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
        clear(test, spec.run()?.output()?, &["user"])
    }),
    Case::new("user_outside_the_mappings", |test| {
        let mut spec = test.spec(&["id"])?;
        spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        let spec = spec.set("/linux/uidMappings", mapping.clone())?.set("/linux/gidMappings", mapping)?;
        clear(test, spec.set("/process/user", json!({"uid": 5000, "gid": 0}))?.run()?.output()?, &[])
    }),
    Case::new("mount_source_missing", |test| {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["rbind"]});
        clear(test, test.spec(&["hello"])?.mount(mount)?.run()?.output()?, &["/no/such/source"])
    }),
    Case::new("mount_type_unknown", |test| {
        let mount = json!({"destination": "/data", "type": "nosuchfs", "source": "none"});
        clear(test, test.spec(&["hello"])?.mount(mount)?.run()?.output()?, &["/data"])
    }),
    Case::new("rootfs_missing", |test| {
        let spec = test.spec(&["hello"])?.set("/root/path", json!("/no/such/rootfs"))?;
        clear(test, spec.run()?.output()?, &["/no/such/rootfs"])
    }),
    Case::new("namespace_path_missing", |test| {
        let mut spec = test.spec(&["hello"])?;
        for namespace in spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")? {
            if namespace["type"] == "network" {
                namespace["path"] = json!("/no/such/namespace");
            }
        }
        clear(test, spec.run()?.output()?, &["/no/such/namespace"])
    }),
    Case::new("sysctl_of_the_host", |test| {
        let spec = test.spec(&["hello"])?.set("/linux/sysctl", json!({"vm.swappiness": "1"}))?;
        clear(test, spec.run()?.output()?, &["vm.swappiness"])
    }),
    Case::new("executor_unknown", |test| {
        let annotation = "io.containerd.hybrid.executor=frobnicate";
        let output = test.run(&["hello"]).flags(&["--annotation", annotation]).output()?;
        clear(test, output, &["io.containerd.hybrid.executor", "frobnicate"])
    })
    .kinds(Kind::ALL)
    .hybrid_only(),
    Case::new("handler_unknown", |test| {
        let output = test.run(&["hello"]).flags(&["--annotation", "run.oci.handler=frobnicate"]).output()?;
        clear(test, output, &["run.oci.handler", "frobnicate"])
    })
    .hybrid_only(),
    Case::new("module_missing", |test| case_of(test, "/no-such.wasm", &["/no-such.wasm"])).kinds(WASM),
    Case::new("module_truncated", |test| case_of(test, "/truncated.wasm", &["/truncated.wasm"])).kinds(WASM),
    Case::new("module_without_entry_point", |test| case_of(test, "/no-entry.wasm", &["_start"])).kinds(WASM),
    Case::new("module_with_an_unknown_import", |test| case_of(test, "/missing-import.wasm", &["env", "not_provided"]))
        .kinds(WASM),
    Case::new("module_in_text_form", |test| case_of(test, "/text.wasm", &["WebAssembly text"])).kinds(WASM),
    Case::new("module_with_threads", |test| case_of(test, "/threads.wasm", &["thread-spawn", "wasi-threads"]))
        .kinds(WASM),
    Case::new("function_missing", |test| case_of(test, "/function.wasm#no_such", &["no_such"])).kinds(WASM),
    Case::new("second_create_of_the_same_id", |test| {
        let running = test.run(&["spin"]).spawn()?;
        running.wait_for("ready")?;
        test.run(&["spin"]).output()?.refused(&["already exists"])?;
        ensure!(test.status(&test.id)? == "RUNNING", "the first no longer runs");
        test.kill(&test.id, "KILL")?;
        running.finish()?.exits(137).map(drop)
    })
    .all(),
    Case::new("config_missing", |test| broken_config(test, None, "config.json")).hybrid_only(),
    Case::new("config_cut_off", |test| {
        let text = test.spec(&["hello"])?.value.to_string();
        broken_config(test, Some(&text[..text.len() / 2]), "config.json")
    })
    .hybrid_only(),
    Case::new("config_not_json", |test| broken_config(test, Some("ociVersion: 1.0.2\n"), "config.json")).hybrid_only(),
    Case::new("config_empty", |test| broken_config(test, Some(""), "config.json")).hybrid_only(),
    Case::new("config_of_an_unknown_version", |test| {
        let spec = test.spec(&["hello"])?.set("/ociVersion", json!("9.0.0"))?;
        broken_config(test, Some(&spec.value.to_string()), "9.0.0")
    })
    .hybrid_only(),
    Case::new("bundle_missing", |test| {
        let direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        let error = server.create_as(|request| request.bundle = "/no/such/bundle".to_owned());
        let error = error.err().context("created from a bundle that does not exist")?.to_string();
        if test.runtime() == Runtime::Hybrid {
            ensure!(error.contains("/no/such/bundle") && error.contains(&test.id), "{error}");
        }
        server.shutdown()?;
        direct.remove()
    }),
    // The spec asks for something the executors do not do: it is named, never passed over.
    Case::new("field_not_done_yet", |test| {
        let spec = test.spec(&["hello"])?.set("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"}))?;
        clear(test, spec.run()?.output()?, &["intelRdt"])
    })
    .hybrid_only(),
];

const WASM: &[Kind] = &[Kind::Core];

/// Fails unless the output refuses with all of `words`; from hybrid one sentence is wanted that names the container.
pub fn clear(test: &Test, output: Output, words: &[&str]) -> Result<()> {
    ensure!(output.code != 0, "should have been refused: {output}");
    if test.runtime() == Runtime::Hybrid {
        let output = output.refused(&[&test.id])?;
        // The name of the test is in the id and may hold the same words.
        let cause = output.stderr.replace(&test.id, "");
        ensure!(words.iter().all(|word| cause.contains(word)), "the cause lacks one of {words:?}: {output}");
        let lines: Vec<&str> = output.stderr.lines().filter(|line| line.contains(&test.id)).collect();
        ensure!(lines.len() == 1, "not one sentence: {output}");
    }
    Ok(())
}

fn case_of(test: &Test, file: &str, words: &[&str]) -> Result<()> {
    // Also for a file that isn't there, so that it is looked for as a module.
    let run = test.run_image("wasm-cases", &[file]).flags(&["--annotation", "io.containerd.hybrid.executor=wasm"]);
    clear(test, run.output()?, words)
}

/// A bundle with this config.json, or none, is refused by `start` or by Create.
fn broken_config(test: &Test, text: Option<&str>, cause: &str) -> Result<()> {
    let mut direct = test.direct()?;
    if let Some(text) = text {
        direct = direct.raw_config(text)?;
    }
    let error = match direct.start() {
        Err(error) => format!("{error:#}"),
        Ok(server) => {
            let created = server.create();
            server.shutdown()?;
            created.err().context("created from a broken config.json")?.to_string()
        }
    };
    ensure!(error.contains(&test.id) && error.contains(cause), "not clear: {error}");
    direct.remove()
}
