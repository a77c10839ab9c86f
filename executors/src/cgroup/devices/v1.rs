//! The device rules of a v1 cgroup, as the kernel keeps them: from what devices.list shows to other rules, with as little
//! change as possible.
//!
//! A cgroup either denies what is not listed, or allows it. Going from one to the other empties the list, so for a moment
//! everything is denied or allowed; adding to and taking from the list concerns nothing else.
//!
//! Source: the kernel's cgroup-v1/devices.rst and security/device_cgroup.c.

use std::collections::BTreeMap;

use super::Rule;

/// What is decided, for all devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    /// Whether everything is allowed that is not listed.
    allow: bool,
    /// The exceptions, with what is denied or allowed.
    list: BTreeMap<(char, Option<u32>, Option<u32>), Access>,
}

/// Bits for r, w and m.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Access(u8);

impl Access {
    fn parse(text: &str) -> Access {
        Access(text.chars().filter_map(|c| "rwm".find(c)).fold(0, |bits, bit| bits | 1 << bit))
    }

    fn text(self) -> String {
        "rwm".chars().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0).map(|(_, c)| c).collect()
    }

    fn without(self, other: Access) -> Access {
        Access(self.0 & !other.0)
    }
}

impl Devices {
    /// What rules come to, one written after the other.
    pub fn from_rules(rules: &[Rule]) -> Devices {
        let mut devices = Devices::default();
        for rule in rules {
            if rule.kind == 'a' {
                devices = Devices { allow: rule.allow, list: BTreeMap::new() };
                continue;
            }
            let access = devices.list.entry((rule.kind, rule.major, rule.minor)).or_default();
            // An exception is only taken back by its own numbers, as the kernel does.
            *access = if rule.allow == devices.allow {
                access.without(Access::parse(&rule.access))
            } else {
                Access(access.0 | Access::parse(&rule.access).0)
            };
            devices.list.retain(|_, access| access.0 != 0);
        }
        devices
    }

    /// Whether a rule takes something out of an exception for more devices than its own, which the kernel ignores.
    fn ignores(&self, rule: &Rule) -> bool {
        let is_in = |one: Option<u32>, all: Option<u32>| all.is_none() || one == all;
        let (key, access) = ((rule.kind, rule.major, rule.minor), Access::parse(&rule.access));
        let holds_it = |(other, held): (&(char, Option<u32>, Option<u32>), &Access)| {
            *other != key
                && other.0 == rule.kind
                && is_in(rule.major, other.1)
                && is_in(rule.minor, other.2)
                && held.0 & access.0 != 0
        };
        rule.kind != 'a' && rule.allow == self.allow && self.list.iter().any(holds_it)
    }

    /// From devices.list. `None` where everything is allowed: it does not show the exceptions then.
    pub fn parse(text: &str) -> Option<Devices> {
        let mut list = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split([' ', ':']);
            let kind = words.next()?.chars().next()?;
            if kind == 'a' {
                return None;
            }
            let mut number = || words.next().map(|word| word.parse::<u32>().ok());
            let key = (kind, number()?, number()?);
            list.insert(key, Access::parse(words.next()?));
        }
        Some(Devices { allow: false, list })
    }

    /// Everything is allowed.
    pub fn all() -> Devices {
        Devices { allow: true, list: BTreeMap::new() }
    }

    pub fn allows_all(&self) -> bool {
        self.allow && self.list.is_empty()
    }

    /// Rules for all that is allowed, where the rest is denied.
    pub fn allowed(&self) -> Vec<Rule> {
        if self.allow { Vec::new() } else { differences(self, &Devices::default(), true) }
    }

    /// Whether devices.list would show the same. It shows nothing of exceptions to what is allowed.
    pub fn shows(&self, text: &str) -> bool {
        Devices::parse(text).map_or(self.allow, |shown| shown == *self)
    }
}

/// The first rule that v1 would take and ignore.
pub(super) fn without_effect(rules: &[Rule]) -> Option<&Rule> {
    let before = |index: usize| Devices::from_rules(rules.get(..index).unwrap_or_default());
    rules.iter().enumerate().find(|(index, rule)| before(*index).ignores(rule)).map(|(_, rule)| rule)
}

/// What to write to come from `now` to `wanted`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub rules: Vec<Rule>,
    /// Whether for a moment all, or nothing, is allowed.
    pub disrupts: bool,
}

/// What is gained comes first, so that nothing is denied in between which is allowed before and after.
pub(crate) fn transition(now: Option<&Devices>, wanted: &Devices) -> Transition {
    let nothing = Devices { allow: wanted.allow, list: BTreeMap::new() };
    let disrupts = now.is_none_or(|now| now.allow || wanted.allow);
    let now = if disrupts { &nothing } else { now.unwrap_or(&nothing) };
    let mut rules = Vec::new();
    if disrupts {
        let everything = Rule { allow: wanted.allow, kind: 'a', major: None, minor: None, access: "rwm".to_owned() };
        rules.push(everything);
    }
    rules.extend(differences(wanted, now, !wanted.allow));
    rules.extend(differences(now, wanted, wanted.allow));
    Transition { rules, disrupts }
}

/// What the exceptions of one have more than those of the other, as rules that allow it or deny it.
fn differences(one: &Devices, other: &Devices, allow: bool) -> Vec<Rule> {
    let rule = |(key, access): (&(char, Option<u32>, Option<u32>), &Access)| {
        let more = access.without(other.list.get(key).copied().unwrap_or_default());
        let (kind, major, minor) = *key;
        (more.0 != 0).then(|| Rule { allow, kind, major, minor, access: more.text() })
    };
    one.list.iter().filter_map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rules;
    use super::*;
    use serde_json::json;

    fn devices(spec: serde_json::Value) -> Devices {
        Devices::from_rules(&rules(&serde_json::from_value::<Vec<_>>(spec).unwrap()))
    }

    fn words(transition: Transition) -> (Vec<String>, bool) {
        let word = |rule: &Rule| format!("{} {rule}", if rule.allow { "allow" } else { "deny" });
        (transition.rules.iter().map(word).collect(), transition.disrupts)
    }

    #[test]
    fn a_list_of_what_is_allowed_changes_by_the_difference() {
        let deny_all = json!({"allow": false, "access": "rwm"});
        let one = devices(json!([deny_all, {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"}]));
        let other = devices(json!([
            deny_all,
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "access": "rw"},
        ]));
        assert_eq!(words(transition(Some(&one), &one)), (vec![], false));
        let (change, disrupts) = words(transition(Some(&one), &other));
        assert_eq!(change, ["allow b 8:* rw", "deny c 10:200 wm"]);
        assert!(!disrupts);
        assert_eq!(words(transition(Some(&other), &one)).0, ["allow c 10:200 wm", "deny b 8:* rw"]);
    }

    #[test]
    fn a_hole_in_a_rule_for_more_devices_is_found() {
        let find = |spec: serde_json::Value| {
            let rules = rules(&serde_json::from_value::<Vec<_>>(spec).unwrap());
            without_effect(&rules[..rules.len() - super::super::ALWAYS.len()]).map(ToString::to_string)
        };
        let major = |allow: bool| json!({"allow": allow, "type": "c", "major": 10, "access": "rw"});
        let one = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 10, "minor": 229, "access": access});
        let all = json!({"allow": true, "access": "rwm"});
        assert_eq!(find(json!([major(true), one(false, "w")])).as_deref(), Some("c 10:229 w"));
        assert_eq!(find(json!([all, major(false), one(true, "r")])).as_deref(), Some("c 10:229 r"));
        for rules in [
            json!([major(true), one(false, "m")]),
            json!([one(false, "rwm"), major(true)]),
            json!([one(true, "rwm"), one(false, "w")]),
            json!([all, one(false, "rwm")]),
            json!([major(true), major(false)]),
        ] {
            assert_eq!(find(rules.clone()), None, "{rules}");
        }
    }

    #[test]
    fn another_default_starts_afresh() {
        let none = devices(json!([]));
        let all =
            devices(json!([{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 9}]));
        let (to_none, disrupts) = words(transition(None, &none));
        assert_eq!((to_none[0].as_str(), disrupts), ("deny a *:* rwm", true));
        assert_eq!(to_none.len(), 12, "and the devices that every container may use");
        let (to_all, disrupts) = words(transition(Some(&none), &all));
        // What every container may use takes back the exception.
        assert_eq!((to_all, disrupts), (vec!["allow a *:* rwm".to_owned()], true));
    }

    #[test]
    fn the_kernel_shows_what_is_allowed() {
        let none = devices(json!([]));
        let text = "c *:* m\nb *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:2 rwm\n\
                    c 136:* rwm\nc 5:1 rwm\n";
        assert_eq!(Devices::parse(text).as_ref(), Some(&none));
        assert!(none.shows(text));
        assert!(!none.shows("c 1:3 rwm\n") && !none.shows("a *:* rwm\n"));
        assert!(devices(json!([{"allow": true}])).shows("a *:* rwm\n"));
        assert_eq!(Devices::parse("a *:* rwm\n"), None);
    }
}
