//! Settings that can be changed while the sandbox runs. `GET /sandbox/settings` answers with all of them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::Api;
use crate::{EventFormat, EventShape, Match, Refused};

/// Selects subscription messages that are accepted, but whose event then reports a failed delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentFailure {
    /// The `ErrorCode` of the event: any code but 0.
    pub error_code: i32,
    /// Its `ErrorStatus`, such as `user_refuse`.
    pub error_status: String,
    /// Which messages; all by default.
    #[serde(default, rename = "match")]
    pub matching: Match,
}

/// Limits of one sending endpoint for calls with a valid token.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) answer: i32,
    pub(crate) per_second: u64,
    pub(crate) daily_quota: u64,
}

/// The settings of a sandbox. All apps share them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Delay of every WeChat call before it is processed, in milliseconds. A caller that disconnects during the delay
    /// has sent nothing.
    pub latency_ms: u64,
    /// Largest random addition to the latency of a call, in milliseconds. Uniformly distributed.
    pub jitter_ms: u64,
    /// Lifetime of a new access token.
    pub token_life_seconds: u64,
    /// `stable_token` issues a new token once the current one has at most this time left.
    pub token_renewal_seconds: u64,
    /// How long the earlier token stays valid after `GET /cgi-bin/token` issued a newer one.
    pub token_grace_seconds: u64,
    /// Age at which form ids and prepay ids expire.
    pub right_life_seconds: u64,
    /// A prepay id younger than this answers 41028, as if WeChat did not know of the payment yet.
    pub young_prepay_seconds: u64,
    /// Number of messages that a prepay id allows, unless the submission says otherwise.
    pub prepay_uses: u32,
    /// Calls of `template/send` that an app may make within one second of the clock. Further calls answer 45011. 0
    /// means no limit.
    pub per_second: u64,
    /// Calls of `template/send` that an app may make a day. Further calls answer 45009 until 00:00 UTC+8. 0 means no
    /// limit.
    pub daily_quota: u64,
    /// Same as `per_second`, for `subscribe/send`.
    pub subscribe_per_second: u64,
    /// Same as `daily_quota`, for `subscribe/send`.
    pub subscribe_daily_quota: u64,
    /// Whether `openapi/quota/get` is served. If not, it answers 48001 to every valid token, like a gateway that lacks
    /// it.
    pub quota_get: bool,
    /// The errcode that every `template/send` with a valid token answers, such as 45103 for a retired API. 0 means off.
    pub answer: i32,
    /// Same as `answer`, for `subscribe/send`.
    pub subscribe_answer: i32,
    /// The template ids that exist. If empty, every non-empty id exists.
    pub templates: Vec<String>,
    /// Template ids that are banned: sends answer 43116.
    pub banned_templates: Vec<String>,
    /// A message that repeats one of this many seconds before (same user, template, page and data) answers 40241.
    /// WeChat refuses such messages for 60 seconds. 0 means off.
    pub same_message_seconds: u64,
    /// How long a message is in review whose send was answered with 40252.
    pub review_ms: u64,
    /// Number of deliveries kept in full per app. The oldest are dropped first. Totals are not affected.
    pub keep_deliveries: usize,
    /// Number of events kept in full per app. The oldest are dropped first. Events queued for the callback are not
    /// affected.
    pub keep_events: usize,
    /// Where events are posted: an http URL. `signature`, `timestamp` and `nonce` are added to its query. Empty:
    /// nowhere.
    pub callback_url: String,
    /// The token that signs events: `signature` is the SHA-1 in hex of this token, the timestamp and the nonce, sorted
    /// and joined. 3 to 32 letters and digits. Required with a `callback_url`.
    pub callback_token: String,
    pub callback_format: EventFormat,
    /// Where the body of an event has its items.
    pub callback_shape: EventShape,
    /// Whether numbers are numbers in JSON, and not strings.
    pub callback_numbers: bool,
    /// Delay before a failed event is posted again, in milliseconds. An event is posted three times at most.
    pub callback_retry_ms: u64,
    /// Subscription messages that are accepted but not delivered. The first entry that matches decides.
    pub sent_failures: Vec<SentFailure>,
    /// Number of distinct messages remembered per app to find repeats, at about 20 to 40 bytes each. Beyond it, repeats
    /// of messages that are not remembered are not found, and the books say so (`messages_exact: false`).
    pub keep_messages: usize,
    /// How far the sandbox's clock is ahead of the real one. A test need not sleep for seven days.
    pub clock_ahead_seconds: u64,
    /// Random seed of fault rules that have none of their own.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            latency_ms: 0,
            jitter_ms: 0,
            token_life_seconds: 7200,
            token_renewal_seconds: 300,
            token_grace_seconds: 300,
            right_life_seconds: 7 * 24 * 3600,
            young_prepay_seconds: 0,
            prepay_uses: 3,
            per_second: 0,
            daily_quota: 0,
            subscribe_per_second: 0,
            subscribe_daily_quota: 10_000_000,
            quota_get: true,
            answer: 0,
            subscribe_answer: 0,
            templates: Vec::new(),
            banned_templates: Vec::new(),
            same_message_seconds: 0,
            review_ms: 1000,
            keep_deliveries: 100_000,
            keep_events: 10_000,
            callback_url: String::new(),
            callback_token: String::new(),
            callback_format: EventFormat::default(),
            callback_shape: EventShape::default(),
            callback_numbers: false,
            callback_retry_ms: 1000,
            sent_failures: Vec::new(),
            keep_messages: 20_000_000,
            clock_ahead_seconds: 0,
            seed: 0,
        }
    }
}

/// Ten years. A larger value is most likely in the wrong unit. The bound also keeps sums of times far from overflow.
const LONGEST_SECONDS: u64 = 10 * 366 * 24 * 3600;
const LONGEST_WAIT_MS: u64 = 600_000;

impl Settings {
    /// These settings with the given fields replaced.
    ///
    /// # Errors
    /// A field is unknown or has the wrong type, or [`Settings::check`] refuses the result.
    pub fn with(&self, fields: Map<String, Value>) -> Result<Self, Refused> {
        let mut all = match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all,
            _ => return Err(Refused::invalid("the settings could not be converted to JSON")),
        };
        all.extend(fields);
        let settings: Self = serde_json::from_value(Value::Object(all)).map_err(Refused::invalid)?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// One sentence that names the first invalid field.
    pub fn check(&self) -> Result<(), Refused> {
        for (name, seconds) in [
            ("token_life_seconds", self.token_life_seconds),
            ("token_renewal_seconds", self.token_renewal_seconds),
            ("token_grace_seconds", self.token_grace_seconds),
            ("right_life_seconds", self.right_life_seconds),
            ("young_prepay_seconds", self.young_prepay_seconds),
            ("same_message_seconds", self.same_message_seconds),
            ("clock_ahead_seconds", self.clock_ahead_seconds),
        ] {
            if seconds > LONGEST_SECONDS {
                return Err(Refused::invalid(format!("{name} must be at most ten years")));
            }
        }
        for (name, wait) in [
            ("latency_ms", self.latency_ms),
            ("jitter_ms", self.jitter_ms),
            ("callback_retry_ms", self.callback_retry_ms),
            ("review_ms", self.review_ms),
        ] {
            if wait > LONGEST_WAIT_MS {
                return Err(Refused::invalid(format!("{name} must be at most ten minutes")));
            }
        }
        for (name, at_least_one) in [
            ("token_life_seconds", self.token_life_seconds),
            ("right_life_seconds", self.right_life_seconds),
            ("prepay_uses", u64::from(self.prepay_uses)),
        ] {
            if at_least_one == 0 {
                return Err(Refused::invalid(format!("{name} must be at least 1")));
            }
        }
        for (name, answer) in [("answer", self.answer), ("subscribe_answer", self.subscribe_answer)] {
            if answer < -1 {
                return Err(Refused::invalid(format!("{name} must be an errcode, or 0 to turn it off")));
            }
        }
        for (name, ids) in [("templates", &self.templates), ("banned_templates", &self.banned_templates)] {
            if ids.iter().any(String::is_empty) {
                return Err(Refused::invalid(format!("{name} must not contain an empty id")));
            }
        }
        self.check_callback()
    }

    fn check_callback(&self) -> Result<(), Refused> {
        let token = self.callback_token.as_bytes();
        let is_token = (3..=32).contains(&token.len()) && token.iter().all(u8::is_ascii_alphanumeric);
        if !is_token && !token.is_empty() {
            return Err(Refused::invalid("callback_token must be empty or 3 to 32 letters and digits"));
        }
        if !self.callback_url.is_empty() && !is_url(&self.callback_url) {
            return Err(Refused::invalid("callback_url must be empty or an http URL"));
        }
        if !self.callback_url.is_empty() && token.is_empty() {
            return Err(Refused::invalid("callback_url requires a callback_token: set both"));
        }
        for (index, failure) in self.sent_failures.iter().enumerate() {
            if failure.error_code == 0 {
                return Err(Refused::at("sent_failures", index, "error_code must not be 0, which means success"));
            }
            if failure.error_status.is_empty() || failure.error_status.contains(char::is_control) {
                return Err(Refused::at("sent_failures", index, "error_status must be a word such as user_refuse"));
            }
        }
        Ok(())
    }

    pub(crate) fn limits(&self, api: Api) -> Limits {
        match api {
            Api::Template => Limits { answer: self.answer, per_second: self.per_second, daily_quota: self.daily_quota },
            Api::Subscribe => Limits {
                answer: self.subscribe_answer,
                per_second: self.subscribe_per_second,
                daily_quota: self.subscribe_daily_quota,
            },
        }
    }

    /// How the delivery of this message fails after it was accepted, if it does.
    pub(crate) fn sent_failure(&self, app_id: &str, openid: &str, template_id: &str) -> Option<&SentFailure> {
        let fits = |failure: &&SentFailure| failure.matching.fits(Some(app_id), Some(openid), Some(template_id));
        self.sent_failures.iter().find(fits)
    }

    pub(crate) fn bans_template(&self, id: &str) -> bool {
        self.banned_templates.iter().any(|banned| banned == id)
    }

    pub(crate) fn knows_template(&self, id: &str) -> bool {
        if self.templates.is_empty() { !id.is_empty() } else { self.templates.iter().any(|known| known == id) }
    }
}

/// Whether events can be posted to this URL.
fn is_url(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| url.scheme() == "http" && url.has_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(fields: Value) -> Result<Settings, Refused> {
        Settings::default().with(fields.as_object().cloned().unwrap())
    }

    #[test]
    fn only_the_given_fields_change() {
        let changed = change(serde_json::json!({"latency_ms": 5, "templates": ["t1"]})).unwrap();
        assert_eq!(changed, Settings { latency_ms: 5, templates: vec!["t1".into()], ..Settings::default() });
    }

    #[test]
    fn invalid_settings_are_refused() {
        for wrong in [
            serde_json::json!({"latncy_ms": 5}),
            serde_json::json!({"latency_ms": "5"}),
            serde_json::json!({"latency_ms": -5}),
            serde_json::json!({"latency_ms": null}),
            serde_json::json!({"jitter_ms": 600_001}),
            serde_json::json!({"token_life_seconds": 0}),
            serde_json::json!({"right_life_seconds": 0}),
            serde_json::json!({"clock_ahead_seconds": 1_700_000_000_000_u64}),
            serde_json::json!({"prepay_uses": 0}),
            serde_json::json!({"answer": -2}),
            serde_json::json!({"subscribe_answer": -2}),
            serde_json::json!({"quota_get": 1}),
            serde_json::json!({"callback_url": "http://127.0.0.1/"}),
            serde_json::json!({"callback_url": "https://127.0.0.1/", "callback_token": "AAAAA"}),
            serde_json::json!({"callback_url": "127.0.0.1:80", "callback_token": "AAAAA"}),
            serde_json::json!({"callback_token": "AA"}),
            serde_json::json!({"callback_token": "not-a-token"}),
            serde_json::json!({"callback_format": "yaml"}),
            serde_json::json!({"callback_retry_ms": 600_001}),
            serde_json::json!({"sent_failures": [{"error_code": 0, "error_status": "user_refuse"}]}),
            serde_json::json!({"sent_failures": [{"error_code": 43101, "error_status": ""}]}),
            serde_json::json!({"sent_failures": [{"error_code": 43101, "error_status": "x", "match": {"user": "u"}}]}),
            serde_json::json!({"templates": ["ok", ""]}),
            serde_json::json!({"banned_templates": [""]}),
            serde_json::json!({"review_ms": 600_001}),
            serde_json::json!({"keep_deliveries": 0.5}),
        ] {
            assert!(change(wrong.clone()).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn first_matching_failure_decides_and_other_messages_arrive() {
        let settings = change(serde_json::json!({"sent_failures": [
            {"error_code": 43101, "error_status": "user_refuse", "match": {"openid": "u", "template_id": "t"}},
            {"error_code": 1, "error_status": "other", "match": {"openid": "u"}},
        ]}))
        .unwrap();
        let code = |openid, template_id| settings.sent_failure("app", openid, template_id).map(|one| one.error_code);
        assert_eq!([code("u", "t"), code("u", "s"), code("v", "t")], [Some(43101), Some(1), None]);
    }

    #[test]
    fn without_a_template_list_every_nonempty_id_exists() {
        let any = Settings::default();
        assert!(any.knows_template("whatever") && !any.knows_template(""));
        let listed = Settings { templates: vec!["t1".into()], ..Settings::default() };
        assert!(listed.knows_template("t1") && !listed.knows_template("whatever"));
    }
}
