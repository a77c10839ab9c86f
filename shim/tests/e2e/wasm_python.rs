//! A large program that others made: CPython, one core module of 20 MB.
use crate::harness::fifos::Fifos;
use crate::harness::isolated::python;
use crate::harness::spec::Spec;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[Case::new("interpreter", interpreter).kinds(&[Kind::Core]).only_newest()];

/// Compiling it takes a processor for about a quarter of a minute.
const COLD: Duration = Duration::from_secs(900);

const REPORT: &str = r#"
import collections, json, re, sys
orders = json.load(open("/work/orders.json"))
totals = collections.Counter()
for order in orders:
    totals[order["who"]] += order["price"]
print(json.dumps({"python": re.match(r"\d+", sys.version)[0], "args": sys.argv[1:], "totals": totals}, sort_keys=True))
open("/work/report", "w").write(str(len(totals)))
sys.exit(len(orders))
"#;

const EAT: &str = r#"
kept = []
try:
    while True:
        kept.append(bytearray(1 << 20))
except MemoryError:
    size, kept = len(kept), None
    print("refused after", size, "MiB")
"#;

fn interpreter(test: &Test) -> Result<()> {
    let work = test.containerd.fresh_path("work");
    std::fs::create_dir(&work)?;
    let orders = json!([{"who": "b", "price": 3}, {"who": "a", "price": 4}, {"who": "b", "price": 5}]);
    for (name, text) in [("orders.json", orders.to_string()), ("report.py", REPORT.into()), ("eat.py", EAT.into())] {
        std::fs::write(work.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    let work = work.display().to_string();

    let report = |id: &str| -> Result<Duration> {
        let begun = Instant::now();
        let running = guest(test, &work, &["/work/report.py", "--all"])?.run()?.id(&test.other(id)).spawn()?;
        let output = running.finish_within(COLD)?.exits(3)?;
        let took = begun.elapsed();
        let answer: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        ensure!(answer == json!({"python": "3", "args": ["--all"], "totals": {"a": 4, "b": 8}}), "{output}");
        let written = std::fs::read_to_string(format!("{work}/report"))?;
        ensure!(written == "2", "the guest wrote {written:?}");
        Ok(took)
    };
    let cold = report("cold")?;
    let warm = (0..3).map(|n| report(&format!("warm{n}"))).collect::<Result<Vec<_>>>()?.into_iter().min();
    let warm = warm.context("three runs")?;
    eprintln!("{}: Python's report takes {cold:?} cold, {warm:?} warm", test.id);
    ensure!(warm * 4 < cold, "{warm:?} with the code that was kept, {cold:?} without");

    let limit = json!({"memory": {"limit": 128 << 20}});
    let eat = guest(test, &work, &["/work/eat.py"])?.set("/linux/resources", limit)?.run()?.id(&test.other("eat"));
    let output = eat.done()?;
    ensure!(output.stdout.starts_with("refused after "), "{output}");

    let io = Fifos::new(test.containerd)?;
    let waiting = guest(test, &work, &["-c", "print('ready', flush=True); input()"])?;
    let task = test.created(waiting, |request| io.name(request))?;
    task.start().context("Start")?;
    io.stdout.wait_for("ready\n")?;
    let exec = task.exec_program("report", &["/python.wasm", "/work/report.py", "again"])?.run()?.exits(3)?;
    ensure!(exec.stdout.contains(r#""args": ["again"]"#), "{exec}");
    task.end()
}

/// Python with a folder that it works in, on a root that has nothing else.
fn guest<'a>(test: &Test<'a>, work: &str, arguments: &[&str]) -> Result<Spec<'a>> {
    let (python, root) = (python()?, test.containerd.fresh_path("root"));
    std::fs::create_dir(&root)?;
    let bind = |source: &str, destination: &str, access: &str| json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind", access]});
    let spec = test.spec(&[])?.set("/root", json!({"path": root}))?;
    let spec = spec.set("/process/args", json!([&["/python.wasm"], arguments].concat()))?;
    let spec = spec.mount(bind(&format!("{python}/python.wasm"), "/python.wasm", "ro"))?;
    spec.mount(bind(&format!("{python}/usr"), "/usr", "ro"))?.mount(bind(work, "/work", "rw"))
}
