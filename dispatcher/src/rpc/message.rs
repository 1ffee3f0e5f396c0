//! Parses the message of a request, for SendTemplate and Broadcast.

use std::collections::{BTreeMap, HashMap};

use domain::TemplateId;
use server::proto::{self, TemplateValue, ValueWarning};
use server::rpc::fields::Fields;

use crate::wechat::message::{Delivery, Message, Value};
use crate::wechat::values::{self, Judgement};

/// Maximum length of a page in bytes; this is WeChat's limit.
const MAX_PAGE: usize = 1024;
/// Maximum number of keys in a message's data; templates have fewer than ten.
const MAX_KEYS: usize = 64;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 4096;
const MAX_COLOR: usize = 32;
/// Maximum number of warnings in a response; more than one message can have.
const MAX_WARNINGS: usize = 200;

const STATES: [&str; 3] = ["developer", "trial", "formal"];
const LANGUAGES: [&str; 4] = ["zh_CN", "en_US", "zh_HK", "zh_TW"];

/// The fields of a request that describe its message.
pub(super) struct Parts {
    pub(super) delivery: i32,
    pub(super) template_id: String,
    pub(super) data: HashMap<String, TemplateValue>,
    pub(super) page: String,
    pub(super) emphasis_keyword: String,
    pub(super) miniprogram_state: String,
    pub(super) lang: String,
    /// Cut texts that are too long for their kind.
    pub(super) fit: bool,
}

/// Warnings about values. A call with a list of users may have many, so only the first are listed.
#[derive(Default)]
pub(super) struct Warnings {
    pub(super) list: Vec<ValueWarning>,
    /// Number of warnings that are not in `list`.
    pub(super) more: u32,
}

impl Warnings {
    fn add(&mut self, field: &str, description: impl Into<String>) {
        if self.list.len() < MAX_WARNINGS {
            self.list.push(ValueWarning { field: field.to_owned(), description: description.into() });
        } else {
            self.more += 1;
        }
    }
}

/// Returns the message and warnings about its values; `None` if the template id is bad. `default` is the generation that
/// the app sends by default.
pub(super) fn read(fields: &mut Fields, parts: Parts, default: Delivery) -> Option<(Message, Warnings)> {
    let Parts { delivery, template_id, mut data, page, emphasis_keyword, miniprogram_state, lang, fit } = parts;
    let delivery = match proto::Delivery::try_from(delivery) {
        Ok(proto::Delivery::Unspecified) => default,
        Ok(proto::Delivery::FormId) => Delivery::FormId,
        Ok(proto::Delivery::Subscription) => Delivery::Subscription,
        Err(_) => {
            fields.refuse("delivery", "must be a known delivery");
            default
        }
    };
    let template_id = fields.take("template_id", TemplateId::parse(template_id));
    fields.text("page", &page, MAX_PAGE);
    check_data(fields, "data", &data);
    let mut warnings = Warnings::default();
    match delivery {
        Delivery::FormId => {
            check_emphasis(fields, &emphasis_keyword, &data);
            for (field, value) in [("miniprogram_state", &miniprogram_state), ("lang", &lang)] {
                if !value.is_empty() {
                    fields.refuse(field, "must be empty: only subscription messages have this field");
                }
            }
        }
        Delivery::Subscription => {
            check_values(fields, "data", &mut data, fit, &mut warnings);
            if !emphasis_keyword.is_empty() {
                fields.refuse("emphasis_keyword", "must be empty: subscription messages do not have this field");
            }
            check_choice(fields, "miniprogram_state", &miniprogram_state, &STATES);
            check_choice(fields, "lang", &lang, &LANGUAGES);
        }
    }
    let data = of_template(data);
    let template_id = template_id?;
    Some((Message { delivery, template_id, page, data, emphasis_keyword, miniprogram_state, lang }, warnings))
}

/// The values of a template, sorted by key.
pub(super) fn of_template(data: HashMap<String, TemplateValue>) -> BTreeMap<String, Value> {
    data.into_iter().map(|(key, value)| (key, Value { value: value.value, color: value.color })).collect()
}

/// Reports values that are bad in both generations; `field` is their path in the request. Only template messages may
/// have line breaks, which `check_values` reports.
pub(super) fn check_data(fields: &mut Fields, field: &str, data: &HashMap<String, TemplateValue>) {
    if data.len() > MAX_KEYS {
        fields.refuse(field, format_args!("must not have more than {MAX_KEYS} keys"));
        return;
    }
    for (key, value) in sorted(data) {
        if !is_key(key) {
            fields.refuse(
                field,
                format_args!("has a key that is not 1 to {MAX_KEY} letters, digits and '_', such as keyword1"),
            );
            continue;
        }
        let path = format!("{field}.{key}.value");
        if fields.fits(&path, &value.value, MAX_VALUE) && value.value.contains(is_forbidden) {
            fields.refuse(path, "must not have control characters");
        }
        fields.text(&format!("{field}.{key}.color"), &value.color, MAX_COLOR);
    }
}

/// Checks the values of a subscription message: reports those that WeChat certainly refuses, and warns of those that it
/// may refuse. With `fit`, texts that are too long are cut first.
pub(super) fn check_values(
    fields: &mut Fields,
    field: &str,
    data: &mut HashMap<String, TemplateValue>,
    fit: bool,
    warnings: &mut Warnings,
) {
    if data.len() > MAX_KEYS {
        return;
    }
    let mut entries: Vec<_> = data.iter_mut().collect();
    entries.sort_by_key(|(key, _)| *key);
    // `check_data` has reported the others.
    let valid = |key: &str, text: &str| is_key(key) && text.len() <= MAX_VALUE && !text.contains(is_forbidden);
    for (key, value) in entries.into_iter().filter(|(key, value)| valid(key, &value.value)) {
        let path = format!("{field}.{key}.value");
        if let Some((cut, most)) = fit.then(|| values::fit(key, &value.value)).flatten() {
            warnings.add(&path, format!("was cut to {most} characters"));
            value.value = cut;
        }
        match values::judge(key, &value.value) {
            Judgement::Fine => {}
            Judgement::Doubtful(description) => warnings.add(&path, description),
            Judgement::Wrong(sentence) => fields.refuse(path, sentence),
        }
        if !value.color.is_empty() {
            fields.refuse(format!("{field}.{key}.color"), "must be empty: subscription messages have no colors");
        }
    }
}

fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\r')
}

fn sorted(data: &HashMap<String, TemplateValue>) -> Vec<(&String, &TemplateValue)> {
    let mut keys: Vec<_> = data.iter().collect();
    keys.sort_by_key(|(key, _)| *key);
    keys
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check_emphasis(fields: &mut Fields, emphasis: &str, data: &HashMap<String, TemplateValue>) {
    if emphasis.is_empty() || !fields.fits("emphasis_keyword", emphasis, MAX_KEY + ".DATA".len()) {
        return;
    }
    if !emphasis.strip_suffix(".DATA").is_some_and(|key| data.contains_key(key)) {
        fields.refuse("emphasis_keyword", "must be a key of data followed by .DATA, such as keyword1.DATA");
    }
}

fn check_choice(fields: &mut Fields, field: &str, value: &str, choices: &[&str]) {
    if !value.is_empty() && !choices.contains(&value) {
        fields.refuse(field, format_args!("must be empty or one of {}", choices.join(", ")));
    }
}
