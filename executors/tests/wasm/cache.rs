//! The cache of precompiled code: what is used, what is made anew, what is removed.

use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use executors::Kind;

use super::{LOOP, Run, bundle, create, create_as, create_with, entries, exit, folder, new_entry, options, run, wat};

pub const TESTS: &[(&str, fn())] = &[
    ("the_cache_is_bounded", the_cache_is_bounded),
    ("code_of_other_builds_goes_first", code_of_other_builds_goes_first),
    ("code_in_use_stays", code_in_use_stays),
    ("what_killed_processes_left_goes", what_killed_processes_left_goes),
    ("the_last_use_is_kept", the_last_use_is_kept),
    ("changed_code_is_not_used", changed_code_is_not_used),
    ("what_a_link_leads_to_is_not_used", what_a_link_leads_to_is_not_used),
    ("starts_while_code_is_removed_succeed", starts_while_code_is_removed_succeed),
    ("a_full_disk_is_told_and_leaves_nothing", a_full_disk_is_told_and_leaves_nothing),
    ("a_cache_that_others_may_write_is_refused", a_cache_that_others_may_write_is_refused),
    ("modules_without_end_are_refused", modules_without_end_are_refused),
    ("limits_of_the_precompiler_are_told", limits_of_the_precompiler_are_told),
];

/// A minute, or the last use is not written anew; and more than a day, or the code is not looked at as a whole.
const HOUR: Duration = Duration::from_secs(3600);
const DAYS: Duration = Duration::from_secs(3 * 86400);

/// Exits with a number of its own after others that nobody else has: so each is a module that was not there before.
fn module(number: i32) -> Vec<u8> {
    let mut module = wat(&exit(number % 256));
    // A custom section (core specification, 5.5.3) with the number.
    module.extend([0, 6, 1, b'n']);
    module.extend(number.to_le_bytes());
    module
}

fn empty_the_cache() {
    for entry in entries() {
        std::fs::remove_dir_all(entry).unwrap();
    }
}

/// Runs a module under a bound of the cache, in bytes.
fn run_bounded(module: &[u8], most: u64) {
    let bounded = options("WasmCacheSize", &most.to_string());
    create_with(module, "", &bounded).unwrap().start().end();
}

/// As the bound counts it.
fn size(entry: &Path) -> u64 {
    let files = std::fs::read_dir(entry).unwrap().map(|file| file.unwrap().metadata().unwrap().blocks());
    (files.sum::<u64>() + entry.metadata().unwrap().blocks()) * 512
}

fn used(entry: &Path) -> SystemTime {
    entry.metadata().unwrap().modified().unwrap()
}

fn use_before(entry: &Path, age: Duration) {
    let times = FileTimes::new().set_modified(SystemTime::now() - age);
    File::open(entry).unwrap().set_times(times).unwrap();
}

fn the_cache_is_bounded() {
    empty_the_cache();
    let kept: Vec<PathBuf> = (1000..1004).map(|number| new_entry(&module(number))).collect();
    let ages = [HOUR * 2, HOUR * 4, HOUR * 3, HOUR];
    for (entry, age) in kept.iter().zip(ages) {
        use_before(entry, age);
    }
    // Used again.
    run(&module(1001), "");
    // Room for the new one and all but one.
    run_bounded(&module(1004), size(&kept[0]) * 4);
    assert!(!kept[2].exists() && [0, 1, 3].iter().all(|number| kept[*number].exists()), "{:?}", entries());
    // For two: the one that was used, and the newest.
    run_bounded(&module(1005), size(&kept[0]) * 2);
    assert_eq!(entries().len(), 2, "{:?}", entries());
    // Less than one: what was just made stays all the same.
    run_bounded(&module(1006), 0);
    let last = entries();
    assert_eq!(last.len(), 1);
    // A hit removes nothing.
    new_entry(&module(1007));
    run_bounded(&module(1006), 0);
    assert_eq!(entries().len(), 2);
}

fn code_of_other_builds_goes_first() {
    empty_the_cache();
    let ours = new_entry(&module(1010));
    use_before(&ours, HOUR);
    let name = ours.file_name().unwrap().to_str().unwrap();
    let mut parts: Vec<&str> = name.split('-').collect();
    parts[1] = "0123456789abcdef";
    let other = folder("cache").join(parts.join("-"));
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(ours.join("code"), other.join("code")).unwrap();
    run_bounded(&module(1011), size(&ours) * 2);
    assert!(ours.exists() && !other.exists(), "{:?}", entries());
}

fn code_in_use_stays() {
    empty_the_cache();
    let created = create(&wat(LOOP), "", "").unwrap();
    let entry = entries().remove(0);
    // Its runner has mapped nothing yet.
    run_bounded(&module(1020), 0);
    assert!(entry.exists());
    let running: Run = created.start();
    let pid = running.container.init().pid();
    // Once it is mapped the folder is no longer held.
    super::await_proc(&format!("/proc/{pid}/maps"), |maps| maps.contains("/code").then_some(()));
    super::await_proc(&format!("/proc/{pid}/status"), |_| File::open(&entry).unwrap().try_lock().is_ok().then_some(()));
    run_bounded(&module(1021), 0);
    assert!(!entry.exists());
    running.container.init().signal(9).unwrap();
    assert_eq!(running.end().code, 137);
}

fn what_killed_processes_left_goes() {
    empty_the_cache();
    let name = new_entry(&module(1030)).file_name().unwrap().to_str().unwrap().to_owned();
    let cache = folder("cache");
    let [dead, alive] = ["d", "a"].map(|letter| format!("{}{}", letter.repeat(64), &name[64..]));
    for name in [&dead, &alive] {
        std::fs::create_dir(cache.join(format!("{name}.new"))).unwrap();
        std::fs::write(cache.join(format!("{name}.new/code")), "half").unwrap();
        std::fs::write(cache.join(format!("{name}.lock")), "").unwrap();
    }
    std::fs::write(cache.join("notes.new"), "not the cache's").unwrap();
    let lock = File::open(cache.join(format!("{alive}.lock"))).unwrap();
    lock.lock().unwrap();
    run(&module(1031), "");
    let left: Vec<String> =
        entries().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(!left.iter().any(|file| file.starts_with(&dead)), "{left:?}");
    assert!(left.contains(&format!("{alive}.new")) && left.contains(&format!("{alive}.lock")), "{left:?}");
    assert!(left.contains(&"notes.new".to_owned()));
    std::fs::remove_file(cache.join("notes.new")).unwrap();
    drop(lock);
    run(&module(1032), "");
    assert!(!entries().iter().any(|path| path.extension().is_some()), "{:?}", entries());
}

fn the_last_use_is_kept() {
    let entry = new_entry(&module(1040));
    let made = used(&entry);
    run(&module(1040), "");
    // Not for each use.
    assert_eq!(used(&entry), made);
    use_before(&entry, HOUR);
    run(&module(1040), "");
    assert!(used(&entry).elapsed().unwrap() < HOUR / 2);
    // Nor does a clock that was set back keep it for ever.
    File::open(&entry).unwrap().set_modified(SystemTime::now() + DAYS).unwrap();
    run(&module(1040), "");
    assert!(used(&entry) < SystemTime::now() + HOUR);
}

fn changed_code_is_not_used() {
    let module = module(1050);
    let entry = new_entry(&module);
    let (code, about) = (entry.join("code"), entry.join("about.json"));
    let made = || code.metadata().map(|code| code.ino()).unwrap();
    let flip = |at: u64| {
        let file = File::options().read(true).write(true).open(&code).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    // As a fault of the disk would have it: the file was not written.
    let disguise = || {
        let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&about).unwrap()).unwrap();
        let metadata = code.metadata().unwrap();
        text["changed"] = serde_json::json!([metadata.ctime(), metadata.ctime_nsec()]);
        std::fs::write(&about, text.to_string()).unwrap();
    };
    let middle = code.metadata().unwrap().len() / 2;
    let changes: [(&str, bool, &dyn Fn()); 6] = [
        ("written to", true, &|| flip(middle)),
        ("a bit of it, long after the last use", true, &|| {
            flip(middle);
            disguise();
            use_before(&entry, DAYS);
        }),
        ("unchanged, long after the last use", false, &|| use_before(&entry, DAYS)),
        ("its head", true, &|| {
            flip(0);
            disguise();
        }),
        ("the mode of its folder", true, &|| {
            std::fs::set_permissions(&entry, Permissions::from_mode(0o777)).unwrap();
        }),
        ("endless facts", true, &|| File::options().write(true).open(&about).unwrap().set_len(8 << 30).unwrap()),
    ];
    for (what, is_made_anew, change) in changes {
        let before = made();
        change();
        assert_eq!(run(&module, "").code, 1050 % 256, "{what}");
        // Inodes are used again, but not while another file has them.
        assert_eq!(made() != before || used(&entry).elapsed().unwrap() < HOUR && is_made_anew, is_made_anew, "{what}");
        let metadata = entry.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o755), "{what}");
    }
}

fn what_a_link_leads_to_is_not_used() {
    let module = module(1060);
    let entry = new_entry(&module);
    let aside = folder("aside");
    for name in ["", "code", "about.json"] {
        let path = if name.is_empty() { entry.clone() } else { entry.join(name) };
        std::fs::rename(&path, &aside).unwrap();
        symlink(&aside, &path).unwrap();
        assert_eq!(run(&module, "").code, 1060 % 256, "{name}");
        assert!(!path.is_symlink(), "{name}");
        // What it led to is as it was.
        assert!(aside.exists(), "{name}");
        if name.is_empty() { std::fs::remove_dir_all(&aside) } else { std::fs::remove_file(&aside) }.unwrap();
    }
}

fn starts_while_code_is_removed_succeed() {
    empty_the_cache();
    let one = module(1070);
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| (0..30).for_each(|_| assert_eq!(run(&one, "").code, 1070 % 256)));
        let mut number = 1071;
        while !starts.is_finished() {
            run_bounded(&module(number), 0);
            number += 1;
        }
        starts.join().unwrap();
    });
}

/// A module with one function that adds so many numbers from its memory.
fn sum(numbers: usize) -> String {
    let add = "(local.set 0 (i32.add (local.get 0) (i32.load (local.get 0))))".repeat(numbers);
    format!(r#"(module (memory 1) (func (export "_start") (local i32) {add}))"#)
}

/// Something mounted on the cache's folder, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(options: &str) -> Mounted {
        let cache = folder("cache");
        std::fs::create_dir_all(&cache).unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs", cache.to_str().unwrap()]);
        Mounted(cache)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success(), "{arguments:?}");
}

fn a_full_disk_is_told_and_leaves_nothing() {
    let small = Mounted::tmpfs("mode=700,size=64k");
    let large = wat(&sum(10_000));
    let error = create(&large, "", "").err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(entries(), Vec::<PathBuf>::new());
    // What fits is kept; on a file system that can't be written it is used.
    run(&module(1080), "");
    assert_eq!(entries().len(), 1);
    use_before(&entries()[0], HOUR);
    mount(&["-o", "remount,ro", small.0.to_str().unwrap()]);
    assert_eq!(run(&module(1080), "").code, 1080 % 256);
    let error = create(&module(1081), "", "").err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("Read-only file system"), "{error}");
}

fn a_cache_that_others_may_write_is_refused() {
    let _open = Mounted::tmpfs("mode=777");
    let error = create(&module(1090), "", "").err().unwrap();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("others may write to it"), "{error}");
    assert_eq!(entries(), Vec::<PathBuf>::new());
}

fn modules_without_end_are_refused() {
    let bundle = bundle(&wat(&exit(0)));
    File::options().write(true).open(bundle.join("rootfs/app.wasm")).unwrap().set_len(1 << 40).unwrap();
    let error = create_as(&bundle, "/app.wasm", "", ["", ""], &options("WasmWasi03", "true")).err().unwrap();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("1099511627776 bytes"), "{error}");
}

/// The word that makes this program print why it refuses a bundle's module, under limits that it was started with.
pub const REFUSE: &str = "refuse";

pub fn refuse(bundle: &str) {
    let error = create_as(Path::new(bundle), "/app.wasm", "", ["", ""], &options("WasmWasi03", "true")).err();
    println!("{}", error.map_or_else(|| "not refused".to_owned(), |error| error.to_string()));
}

fn limits_of_the_precompiler_are_told() {
    // Takes seconds to compile, and memory.
    let dear = wat(&sum(200_000));
    let before = entries();
    for (limit, words) in [("-t 1", "processor time"), ("-d 200000", "bytes of memory")] {
        let bundle = bundle(&dear);
        let script = format!("ulimit -S {limit}; exec \"$0\" \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .args([REFUSE, bundle.to_str().unwrap()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("module /app.wasm: ") && text.contains(words), "{limit}: {text}");
        assert!(text.len() < 200, "{limit}: {text}");
    }
    assert_eq!(entries(), before);
}
