//! Parses the message of a request, for SendTemplate and Broadcast.

use std::collections::{BTreeMap, HashMap};

use domain::TemplateId;
use server::proto::{self, TemplateValue, ValueWarning};
use server::rpc::fields::Fields;

use crate::wechat::keywords::{Judgement, judge};
use crate::wechat::message::{Delivery, Message, Value};

/// Maximum length of a page in bytes; this is WeChat's limit.
const MAX_PAGE: usize = 1024;
/// Maximum number of keys in a message's data; templates have fewer than ten.
const MAX_KEYS: usize = 64;
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 4096;
const MAX_COLOR: usize = 32;

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
}

/// Returns the message and warnings about its values; `None` if the template id is bad. `default` is the generation that
/// the app sends by default.
pub(super) fn read(fields: &mut Fields, parts: Parts, default: Delivery) -> Option<(Message, Vec<ValueWarning>)> {
    let Parts { delivery, template_id, data, page, emphasis_keyword, miniprogram_state, lang } = parts;
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
    let mut warnings = Vec::new();
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
            check_values(fields, "data", &data, &mut warnings);
            if !emphasis_keyword.is_empty() {
                fields.refuse("emphasis_keyword", "must be empty: subscription messages do not have this field");
            }
            check_choice(fields, "miniprogram_state", &miniprogram_state, &STATES);
            check_choice(fields, "lang", &lang, &LANGUAGES);
        }
    }
    let data = values(data);
    let template_id = template_id?;
    Some((Message { delivery, template_id, page, data, emphasis_keyword, miniprogram_state, lang }, warnings))
}

/// The values of a template, sorted by key.
pub(super) fn values(data: HashMap<String, TemplateValue>) -> BTreeMap<String, Value> {
    data.into_iter().map(|(key, value)| (key, Value { value: value.value, color: value.color })).collect()
}

/// Reports bad values of a template; `field` is their path in the request.
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
        fields.text(&format!("{field}.{key}.value"), &value.value, MAX_VALUE);
        fields.text(&format!("{field}.{key}.color"), &value.color, MAX_COLOR);
    }
}

/// Checks the values of a subscription message: reports those that WeChat certainly refuses, and warns of those that it
/// may refuse.
pub(super) fn check_values(
    fields: &mut Fields,
    field: &str,
    data: &HashMap<String, TemplateValue>,
    warnings: &mut Vec<ValueWarning>,
) {
    // `check_data` has reported what is too large.
    let small = data.len() <= MAX_KEYS;
    let valid = |(key, value): &(&String, &TemplateValue)| is_key(key) && value.value.len() <= MAX_VALUE;
    for (key, value) in sorted(data).into_iter().filter(|entry| small && valid(entry)) {
        let path = format!("{field}.{key}.value");
        match judge(key, &value.value) {
            Judgement::Fine => {}
            Judgement::Doubtful(description) => {
                warnings.push(ValueWarning { field: path, description: description.into() });
            }
            Judgement::Wrong(sentence) => fields.refuse(path, sentence),
        }
        if !value.color.is_empty() {
            fields.refuse(format!("{field}.{key}.color"), "must be empty: subscription messages have no colors");
        }
    }
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
