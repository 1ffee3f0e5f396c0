//! Decides which fault rule fires for a call.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::lock::lock;
use crate::rules::{Facts, FaultKind, Rule};
use crate::{Refused, Settings};

/// A rule that fired.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) name: String,
    pub(crate) kind: FaultKind,
    pub(crate) errcode: i32,
    pub(crate) detail: String,
    pub(crate) hang_ms: u64,
    pub(crate) location: String,
}

struct Active {
    rule: Rule,
    fired: u64,
    dice: StdRng,
}

impl Active {
    fn fires(&mut self, call: &Facts<'_>) -> bool {
        let fires = self.rule.times.is_none_or(|times| self.fired < times)
            && self.rule.is_about(call)
            && self.rule.probability.is_none_or(|p| self.dice.random_bool(p));
        self.fired += u64::from(fires);
        fires
    }
}

#[derive(Default)]
pub(crate) struct Faults {
    /// Avoids the lock in the common case that there is no rule.
    any: AtomicBool,
    rules: Mutex<Vec<Active>>,
}

impl Faults {
    /// Appends the rules. If one is invalid, none is added.
    pub(crate) fn add(&self, new: Vec<Rule>, settings: &Settings) -> Result<(), Refused> {
        for (index, rule) in new.iter().enumerate() {
            rule.check().map_err(|why| Refused::at("faults", index, why))?;
        }
        let mut rules = lock(&self.rules);
        for rule in new {
            let seed = rule.seed.unwrap_or(settings.seed.wrapping_add(rules.len() as u64));
            rules.push(Active { rule, fired: 0, dice: StdRng::seed_from_u64(seed) });
        }
        self.any.store(!rules.is_empty(), Ordering::Release);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        let mut rules = lock(&self.rules);
        rules.clear();
        self.any.store(false, Ordering::Release);
    }

    pub(crate) fn list(&self) -> Vec<Rule> {
        lock(&self.rules).iter().map(|active| active.rule.clone()).collect()
    }

    pub(crate) fn pick(&self, call: &Facts<'_>) -> Option<Fault> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut rules = lock(&self.rules);
        let rule = &rules.iter_mut().find_map(|active| active.fires(call).then_some(active))?.rule;
        Some(Fault {
            name: rule.name.clone().unwrap_or_else(|| rule.kind.name().to_owned()),
            kind: rule.kind,
            errcode: rule.errcode.unwrap_or_default(),
            detail: rule.detail.clone().unwrap_or_default(),
            hang_ms: rule.hang_ms.unwrap_or_default(),
            location: rule.location.clone().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Endpoint, Match};

    const SEND: Facts<'static> =
        Facts { endpoint: Endpoint::Send, app_id: Some("app"), openid: Some("u"), template_id: Some("t") };

    fn with(rules: Vec<Rule>) -> Faults {
        let faults = Faults::default();
        faults.add(rules, &Settings::default()).unwrap();
        faults
    }

    fn matching(matching: Match) -> Faults {
        with(vec![Rule { matching, ..Rule::new(FaultKind::CutAfter) }])
    }

    #[test]
    fn rule_fires_the_given_number_of_times() {
        let faults = with(vec![Rule { times: Some(2), ..Rule::new(FaultKind::CutBefore) }]);
        let fired: Vec<bool> = (0..4).map(|_| faults.pick(&SEND).is_some()).collect();
        assert_eq!(fired, [true, true, false, false]);
    }

    #[test]
    fn same_seed_fires_for_the_same_calls() {
        let draws = |seed| {
            let rule = Rule { probability: Some(0.25), seed: Some(seed), ..Rule::new(FaultKind::CutBefore) };
            let faults = with(vec![rule]);
            (0..1000).map(|_| faults.pick(&SEND).is_some()).collect::<Vec<bool>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        let fired = draws(1).iter().filter(|fired| **fired).count();
        assert!((200..300).contains(&fired), "{fired} of 1000 calls fired at a probability of 0.25");
    }

    #[test]
    fn rule_matches_only_the_calls_it_selects() {
        let some = |text: &str| Some(text.to_owned());
        assert!(matching(Match { openid: some("u"), ..Match::default() }).pick(&SEND).is_some());
        for other in [
            Match { app_id: some("other"), ..Match::default() },
            Match { openid: some("other"), ..Match::default() },
            Match { app_id: some("app"), template_id: some("other"), ..Match::default() },
        ] {
            assert!(matching(other).pick(&SEND).is_none());
        }
        let token = Facts { endpoint: Endpoint::Token, openid: None, template_id: None, ..SEND };
        assert!(matching(Match::default()).pick(&token).is_none());
    }

    #[test]
    fn first_rule_that_fires_decides() {
        let never = Rule { probability: Some(0.0), ..Rule::new(FaultKind::CutBefore) };
        let faults = with(vec![never, Rule::new(FaultKind::CutAfter), Rule::new(FaultKind::CutMid)]);
        assert_eq!(faults.pick(&SEND).unwrap().kind, FaultKind::CutAfter);
        faults.clear();
        assert!(faults.pick(&SEND).is_none());
    }

    #[test]
    fn invalid_rule_is_refused_and_none_is_added() {
        let cut = || Rule::new(FaultKind::CutAfter);
        let answer = |errcode| Rule { errcode, ..Rule::new(FaultKind::Answer) };
        let of_user = || Match { openid: Some("u".into()), ..Match::default() };
        for wrong in [
            Rule { probability: Some(1.5), ..cut() },
            Rule { probability: Some(f64::NAN), ..cut() },
            Rule { name: Some(String::new()), ..cut() },
            Rule { errcode: Some(45009), ..cut() },
            Rule { detail: Some("203.0.113.7".into()), ..cut() },
            Rule { detail: Some(String::new()), ..answer(Some(40164)) },
            Rule { hang_ms: Some(5), ..cut() },
            Rule { location: Some("http://elsewhere".into()), ..cut() },
            Rule { endpoint: Endpoint::Token, matching: of_user(), ..cut() },
            Rule { endpoint: Endpoint::Quota, matching: of_user(), ..cut() },
            answer(None),
            answer(Some(0)),
            Rule::new(FaultKind::HangAfter),
            Rule::new(FaultKind::Redirect),
            Rule { location: Some("two\nlines".into()), ..Rule::new(FaultKind::Redirect) },
        ] {
            let faults = Faults::default();
            let refused = faults.add(vec![cut(), wrong.clone()], &Settings::default());
            assert!(refused.is_err(), "{wrong:?} was accepted");
            assert!(faults.list().is_empty());
        }
    }
}
