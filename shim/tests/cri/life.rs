//! Pods, their containers of both kinds, and what the kubelet does with them.
use crate::api::*;
use crate::harness::case::CaseOf;
use crate::harness::leaks::Process;
use crate::harness::{Kind, PATIENCE};
use crate::pod::{Case, Container, Test};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    CaseOf::new("a_container_of_a_pod", a_container as _).all(),
    CaseOf::new("the_exit_code", exit_code as _).all(),
    CaseOf::new("both_kinds_in_one_pod", both_kinds as _).hybrid_only(),
    CaseOf::new("many_execs", many_execs as _).all(),
    CaseOf::new("exec_that_takes_too_long", exec_timeout as _).all(),
    CaseOf::new("stop_with_grace", stop as _).all(),
    CaseOf::new("stop_without", stop_at_once as _).all(),
    CaseOf::new("a_container_that_is_not_there", no_program as _).all(),
    CaseOf::new("a_created_container_is_removed", created as _).all(),
    CaseOf::new("pids_of_the_pod", shared_pids as _),
    CaseOf::new("a_pod_that_goes_with_its_containers", all_at_once as _).all(),
    CaseOf::new("a_terminal", terminal as _),
    CaseOf::new("the_network_of_the_node", node_network as _).all(),
    CaseOf::new("a_user_namespace", user_namespace as _).all(),
    CaseOf::new("a_module_that_is_a_layer", module_in_a_layer as _).kinds(&[Kind::Core]),
];

fn a_container(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.run(test.kind, "main", &["say", "out\n", "err\n"])?;
    ensure!(container.ended()?.exit_code == 0, "{:?}", container.status()?);
    let log = container.log()?;
    // The first word is the time.
    let mut lines: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    lines.sort();
    ensure!(lines == ["stderr F err", "stdout F out"], "{lines:?}");
    container.remove()
}

/// With the config of an ordinary image, which the CRI needs. It knows images by their configs: of several with the same one
/// it may take any, but says since containerd 2.0 which was asked for.
fn module_in_a_layer(test: &Test) -> Result<()> {
    let names: &[&str] = if test.containerd.line == "2.x" { &["pod-layer", "runwasi-layer"] } else { &["pod-layer"] };
    let pod = test.pod(|_| ())?;
    for name in names {
        let image = test.containerd.artifact_in("k8s.io", name)?;
        let end = Instant::now() + PATIENCE;
        while !test.client.has_image(&image)? {
            ensure!(Instant::now() < end, "containerd does not know {image}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let container = pod.create(test.kind, name, &["say", "out\n", ""], |config| {
            config.image = Some(ImageSpec { image: image.clone(), user_specified_image: image });
        })?;
        container.start()?;
        ensure!(container.ended()?.exit_code == 0, "{name}: {:?}", container.status()?);
        container.logged("out")?;
        container.remove()?;
    }
    Ok(())
}

fn exit_code(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let status = pod.run(test.kind, "main", &["exit", "9"])?.ended()?;
    ensure!(status.exit_code == test.kind.code(9) && status.reason == "Error", "{status:?}");
    Ok(())
}

fn both_kinds(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let containers =
        Kind::ALL.iter().map(|&kind| pod.run(kind, kind.name(), &["pause"])).collect::<Result<Vec<_>>>()?;
    containers.iter().try_for_each(|container| container.logged("ready"))?;
    let shims = containers.iter().map(shim).collect::<Result<Vec<_>>>()?;
    ensure!(shims.iter().all(|shim| *shim == shims[0]), "the shims are {shims:?}");
    for (kind, container) in Kind::ALL.iter().zip(&containers) {
        let output = container.exec(&["reply", kind.name(), "0"])?;
        ensure!(output.stdout == format!("{}\n", kind.name()).as_bytes() && output.exit_code == 0, "{output:?}");
    }
    // What ends with one is that one.
    let (first, others) = containers.split_first().context("no containers")?;
    first.stop(0)?;
    first.remove()?;
    others.iter().try_for_each(|container| {
        ensure!(container.status()?.state() == ContainerState::Running, "{:?}", container.status()?);
        Ok(())
    })
}

/// The pid of the shim that a container's init is the child of.
fn shim(container: &Container) -> Result<u32> {
    let shim = Process::all()?.into_iter().find(|process| process.mentions(&container.id)).map(|init| init.parent);
    shim.with_context(|| format!("no process of {}", container.id))
}

fn many_execs(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.run(test.kind, "main", &["pause"])?;
    container.logged("ready")?;
    for number in 0..20 {
        let text = format!("probe {number}");
        let output = container.exec(&["reply", &text, "3"])?;
        ensure!(output.stdout == format!("{text}\n").as_bytes(), "{output:?}");
        ensure!(output.exit_code == test.kind.code(3), "{output:?}");
    }
    Ok(())
}

fn exec_timeout(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.run(test.kind, "main", &["pause"])?;
    container.logged("ready")?;
    let error = format!("{:#}", container.exec_within(&["pause"], 1).map(drop).unwrap_err());
    ensure!(error.contains("timeout"), "{error}");
    ensure!(container.exec(&["exit", "0"])?.exit_code == 0, "an exec after it fails");
    Ok(())
}

fn stop(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    // A guest can't handle signals: its end is 128 + SIGTERM.
    let (arguments, code): (&[&str], _) =
        if test.kind == Kind::Linux { (&["on-term", "7"], 7) } else { (&["pause"], 143) };
    let container = pod.run(test.kind, "main", arguments)?;
    container.logged("ready")?;
    container.stop(600)?;
    let status = container.status()?;
    ensure!(status.exit_code == code, "{status:?}");
    Ok(())
}

fn stop_at_once(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.run(test.kind, "main", &["spin"])?;
    container.logged("ready")?;
    container.stop(0)?;
    let status = container.status()?;
    ensure!(status.exit_code == 137, "{status:?}");
    Ok(())
}

fn no_program(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &[], |config| config.command = vec!["/no/such/program".into()])?;
    let error = format!("{:#}", container.start().unwrap_err());
    ensure!(error.contains("/no/such/program"), "{error}");
    // StartError, by which the kubelet knows it.
    let status = container.status()?;
    ensure!(status.state() == ContainerState::Exited && status.reason == "StartError", "{status:?}");
    container.remove()
}

fn created(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &["pause"], |_| ())?;
    ensure!(container.status()?.state() == ContainerState::Created, "{:?}", container.status()?);
    container.remove()
}

fn shared_pids(test: &Test) -> Result<()> {
    let pod = test.pod(|config| namespaces(config, |namespaces| namespaces.pid = NamespaceMode::Pod as i32))?;
    let container = pod.run(test.kind, "main", &["children", "2"])?;
    container.logged("ready")?;
    // The pod's own process is the first.
    let output = container.exec(&["cat", "/proc/1/cmdline"])?;
    ensure!(output.stdout == b"/bin/probe\0reap\0", "{output:?}");
    // With init all end, though the pid namespace goes on.
    container.stop(0)?;
    let other = pod.run(test.kind, "other", &["ls", "/proc"])?;
    other.ended()?;
    let pids = other.log()?.lines().filter(|line| line.rsplit(' ').next().is_some_and(is_number)).count();
    ensure!(pids == 2, "{} processes:\n{}", pids, other.log()?);
    Ok(())
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn namespaces(config: &mut PodSandboxConfig, change: impl FnOnce(&mut NamespaceOption)) {
    let linux = config.linux.get_or_insert_default();
    change(linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default());
}

fn all_at_once(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    for name in ["one", "two", "three"] {
        pod.run(test.kind, name, &["pause"])?.logged("ready")?;
    }
    // What is left is seen after the pod was stopped and removed.
    Ok(())
}

fn terminal(test: &Test) -> Result<()> {
    let pod = test.pod(|_| ())?;
    let container = pod.create(test.kind, "main", &["isatty"], |config| config.tty = true)?;
    container.start()?;
    ensure!(container.ended()?.exit_code == 0, "{:?}", container.status()?);
    ensure!(container.log()?.contains("stdout"), "{}", container.log()?);
    Ok(())
}

fn node_network(test: &Test) -> Result<()> {
    let pod = test.pod(|config| namespaces(config, |namespaces| namespaces.network = NamespaceMode::Node as i32))?;
    let status = pod.run(test.kind, "main", &["hello"])?.ended()?;
    ensure!(status.exit_code == 0, "{status:?}");
    Ok(())
}

/// Since 1.7 with stateless pods, since 2.0 with all.
fn user_namespace(test: &Test) -> Result<()> {
    if test.containerd.line != "2.x" {
        return Ok(());
    }
    let mapping = || vec![IdMapping { host_id: 200_000, container_id: 0, length: 65536 }];
    let pod = test.pod(|config| {
        let options = UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping(), gids: mapping() };
        namespaces(config, |namespaces| namespaces.userns_options = Some(options));
    })?;
    let container = pod.run(test.kind, "main", &["pause"])?;
    container.logged("ready")?;
    let init = Process::all()?.into_iter().find(|process| process.mentions(&container.id));
    let pid = init.context("no process of the container")?.pid;
    let maps = fs::read_to_string(format!("/proc/{pid}/uid_map")).context("reading the mappings")?;
    ensure!(maps.split_whitespace().eq(["0", "200000", "65536"]), "{maps}");
    let output = container.exec(&["write", "/file", "text"])?;
    ensure!(output.exit_code == 0, "{output:?}");
    Ok(())
}
