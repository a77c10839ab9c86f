//! Any JSON gives a plan or an error that names the field, soon, in little memory: real specs, changed at random.
//!
//! The same doors are open to a fuzzer, which finds its own way (`fuzz/`); here the changes are those that a person or a
//! hostile client would think of, from a seed that is always the same.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{image, process, spec};
use crate::{Kind, Result};

/// Specs as containerd's `ctr`, Docker Engine and the kubelet write them.
const SEEDS: [&str; 3] = [
    include_str!("../../../fuzz/seeds/spec/containerd.json"),
    include_str!("../../../fuzz/seeds/spec/docker.json"),
    include_str!("../../../fuzz/seeds/spec/kubelet.json"),
];

/// How many changed specs are tried.
const ROUNDS: u64 = 2000;

/// What a single one may take on a machine that is busy with other things; by itself it takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A value that somewhere in a spec may do harm.
fn nasty(random: &mut Random) -> Value {
    match random.below(26) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(0),
        4 => json!(i64::MIN),
        5 => json!(u64::MAX),
        6 => json!(1e300),
        7 => json!(u32::MAX),
        8 => json!(""),
        9 => json!("a\0b"),
        10 => json!("/"),
        11 => json!("../../.."),
        12 => json!("/proc/../proc/./self"),
        13 => json!("x".repeat(100_000)),
        14 => json!("\u{fffd}\u{202e}ü\n\r\t"),
        15 => json!([]),
        16 => json!({}),
        17 => Value::Array(vec![json!(0); 5000]),
        18 => Value::Array(vec![json!("a=b"); 5000]),
        19 => (0..100).fold(json!(1), |inner, _| json!([inner])),
        20 => json!({"type": "user", "path": "/proc/1/ns/user"}),
        21 => json!([{"containerID": 0, "hostID": u32::MAX, "size": u32::MAX}]),
        22 => json!([{"destination": "/proc", "type": "proc"}, {"destination": "/proc", "type": "tmpfs"}]),
        23 => {
            json!([{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}])
        }
        24 => json!("SCMP_ACT_NOTIFY"),
        _ => json!({"kernel.core_pattern": "|/bin/sh", "net.": "1", "fs.mqueue..": ""}),
    }
}

/// Every place in a value, as a pointer (RFC 6901).
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                places(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| places(value, &format!("{at}/{i}"), all)),
        _ => {}
    }
}

/// Changes one place.
fn change(random: &mut Random, config: &mut Value) {
    let mut all = Vec::new();
    places(config, "", &mut all);
    let (at, other) = (random.one(&all).clone(), random.one(&all).clone());
    let other = config.pointer(&other).cloned().unwrap_or_default();
    let Some(place) = config.pointer_mut(&at) else { return };
    match (random.below(8), place) {
        (0..=3, place) => *place = nasty(random),
        // Another part of the same spec.
        (4, place) => *place = other,
        (5, Value::Object(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            map.remove(random.one(&keys).as_str());
        }
        (6, Value::Object(map)) => {
            let renamed: Map<String, Value> =
                map.iter().map(|(key, value)| (format!("{key}x"), value.clone())).collect();
            *map = renamed;
        }
        (_, Value::Array(list)) => {
            let copies = list.len() * random.below(50);
            let more: Vec<Value> = list.iter().cycle().take(copies).cloned().collect();
            list.extend(more);
        }
        (_, Value::String(text)) => *text = text.repeat(random.below(50)),
        (_, place) => *place = nasty(random),
    }
}

/// The result of a door, if it was as it should be.
fn fair<T>(config: &[u8], door: impl FnOnce(&[u8]) -> Result<T>) -> bool {
    let shown = || String::from_utf8_lossy(&config[..config.len().min(3000)]).into_owned();
    let before = Instant::now();
    let result = door(config);
    let took = before.elapsed();
    assert!(took < PATIENCE, "took {took:?}: {}", shown());
    let Err(error) = result else { return true };
    let text = error.to_string();
    assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unimplemented), "{error:?}: {}", shown());
    const FIELDS: [&str; 13] = [
        "annotations",
        "domainname",
        "hooks",
        "hostname",
        "linux",
        "mounts",
        "not an object of the spec",
        "ociVersion",
        "process",
        "root",
        "vm",
        "windows",
        "zos",
    ];
    // Where the text is no JSON the error says at which line.
    let is_json = serde_json::from_slice::<Value>(config).is_ok();
    let named = FIELDS.iter().any(|field| text.starts_with(field)) || !is_json && text.contains(" at line ");
    assert!(named, "no field in {text:?}: {}", shown());
    false
}

#[test]
fn the_seeds_are_good() {
    for seed in SEEDS {
        let steps = spec(seed.as_bytes()).unwrap();
        assert!(steps > 20, "{steps}");
    }
}

#[test]
fn any_spec_gives_a_plan_or_an_error_that_names_the_field() {
    let mut random = Random(0x5eed_0001);
    let (mut good, before) = (0, Instant::now());
    for round in 0..ROUNDS {
        let mut config: Value = serde_json::from_str(SEEDS[round as usize % SEEDS.len()]).unwrap();
        for _ in 0..=random.below(3) {
            change(&mut random, &mut config);
        }
        good += u64::from(fair(config.to_string().as_bytes(), spec));
        fair(config["process"].to_string().as_bytes(), process);
    }
    println!("{good} of {ROUNDS} were good; {:?} each", before.elapsed() / ROUNDS as u32);
    // Both happen, or the changes are none.
    assert!(good > ROUNDS / 20 && good < ROUNDS * 9 / 10, "{good} of {ROUNDS} were good");
}

/// Changes a text at a few places.
fn damage(random: &mut Random, text: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(text.len());
        match random.below(4) {
            0 => text.truncate(at),
            1 => text[at] ^= 1 << random.below(8),
            2 => text
                .splice(at..at, [b'[', b'"', b'{', b'\\', 0xff, b'9'][random.below(6)..].iter().copied())
                .for_each(drop),
            _ => {
                let part = text[at..(at + random.below(200)).min(text.len())].to_vec();
                text.splice(at..at, part).for_each(drop);
            }
        }
        if text.is_empty() {
            break;
        }
    }
}

#[test]
fn any_text_gives_a_plan_or_an_error_that_names_the_field() {
    let mut random = Random(0x5eed_0002);
    for round in 0..ROUNDS {
        let mut text = SEEDS[round as usize % SEEDS.len()].as_bytes().to_vec();
        damage(&mut random, &mut text);
        fair(&text, spec);
        fair(&text, process);
    }
}

/// Documents of images: the Wasm OCI artifact layout, an ordinary image with modules beside its layers, an index of both.
const IMAGES: [&[u8]; 3] = [
    include_bytes!("../../../fuzz/seeds/image/artifact.json"),
    include_bytes!("../../../fuzz/seeds/image/ordinary.json"),
    include_bytes!("../../../fuzz/seeds/image/index.json"),
];

/// Whether an image is good; what it is refused for has to be as it should.
fn fair_image(documents: &[u8]) -> bool {
    let shown = || String::from_utf8_lossy(&documents[..documents.len().min(3000)]).into_owned();
    let before = Instant::now();
    let result = image(documents);
    let took = before.elapsed();
    assert!(took < PATIENCE, "took {took:?}: {}", shown());
    let Err(error) = result else { return true };
    let known = matches!(error.kind(), Kind::InvalidArgument | Kind::NotFound | Kind::Unimplemented);
    // Hostile text is not handed on at length.
    assert!(known && error.to_string().len() < 20_000, "{error:?}: {}", shown());
    false
}

#[test]
fn any_image_gives_modules_or_an_error() {
    assert_eq!(IMAGES.map(|seed| image(seed).unwrap()), [1, 2, 1]);
    let mut random = Random(0x5eed_0003);
    let mut good = 0;
    for round in 0..ROUNDS {
        let seed = IMAGES[round as usize % IMAGES.len()];
        let mut documents: Vec<Vec<u8>> = seed.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        // The first one, which leads to the others by their digests.
        if round % 2 == 0 {
            let mut value: Value = serde_json::from_slice(&documents[0]).unwrap();
            change(&mut random, &mut value);
            documents[0] = value.to_string().into_bytes();
        } else {
            damage(&mut random, &mut documents[0]);
        }
        good += u64::from(fair_image(&documents.join(&0)));
    }
    println!("{good} of {ROUNDS} were good");
    assert!(good > ROUNDS / 20 && good < ROUNDS * 9 / 10, "{good} of {ROUNDS} were good");
}
