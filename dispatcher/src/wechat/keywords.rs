//! Rules for the values of a subscription message. WeChat derives the kind of a value from its key (`thing1`,
//! `amount3`) and refuses a message with 47003 if a value does not fit its kind. A failed send could cost a grant, so
//! values that WeChat certainly refuses are reported before sending. Doubtful values pass with a warning.
//!
//! The limits are from the page on subscription messages in the mini program documentation. It does not say how wide
//! characters count. Here each character counts as one, and a warning is given if the value would be too long with wide
//! characters counted as two.

/// How WeChat is expected to treat a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Fine,
    /// WeChat may refuse or truncate it; the text says why.
    Doubtful(&'static str),
    /// WeChat certainly refuses it; the text says what the value must be.
    Wrong(&'static str),
}

use Judgement::{Doubtful, Fine, Wrong};

/// What holds for certain values, and what to say about them.
type Check = (fn(&str) -> bool, &'static str);

struct Rule {
    /// The prefix of the keys.
    kind: &'static str,
    wrong: Check,
    doubtful: &'static [Check],
}

const fn rule(kind: &'static str, wrong: Check, doubtful: &'static [Check]) -> Rule {
    Rule { kind, wrong, doubtful }
}

/// Each template defines the values of its own enumerations.
const ANY: Check = (|_| false, "");

const NO_MOMENT: Check =
    (|value| !any(value, |c| c.is_ascii_digit()), "must be a time or a date, such as 15:01 or 2019年10月1日 15:01");
const UNUSUAL_MOMENT: &str = "does not look like 15:01 or 2019年10月1日 15:01";

const RULES: &[Rule] = &[
    rule(
        "thing",
        (|value| count(value) > 20, "must be at most 20 characters"),
        &[(
            |value| value.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>() > 20,
            "has wide characters; if WeChat counts them twice, it is longer than 20",
        )],
    ),
    rule(
        "number",
        (|value| !is_number(value), "must be a number of at most 32 digits; decimals are allowed"),
        &[(|value| value.starts_with(['-', '+']), "has a sign, and only digits and decimals are documented")],
    ),
    rule(
        "letter",
        (|value| count(value) > 32 || any(value, |c| !c.is_ascii_alphabetic()), "must be at most 32 letters"),
        &[],
    ),
    rule(
        "symbol",
        (|value| count(value) > 5, "must be at most 5 symbols"),
        &[(|value| any(value, char::is_alphanumeric), "has letters or digits, and only symbols are documented")],
    ),
    rule(
        "character_string",
        (|value| count(value) > 32 || any(value, is_chinese), "must be at most 32 digits, letters and symbols"),
        &[(
            |value| !value.is_ascii(),
            "has characters outside ASCII, and only digits, letters and symbols are documented",
        )],
    ),
    rule(
        "phrase",
        (|value| count(value) > 5, "must be at most 5 Chinese characters"),
        &[(|value| any(value, |c| !is_chinese(c)), "has characters that are not Chinese")],
    ),
    rule(
        "name",
        (
            |value| count(value) > if any(value, is_chinese) { 10 } else { 20 },
            "must be at most 10 characters if any is Chinese, otherwise 20",
        ),
        &[(
            |value| any(value, |c| c.is_ascii_digit()),
            "has digits, and only letters, Chinese characters and symbols are documented",
        )],
    ),
    rule(
        "amount",
        (
            |value| !is_plain_amount(value) && !is_lettered_amount(value),
            "must be at most one currency sign, up to 10 digits, optional decimals, and optionally 元 at the end",
        ),
        &[
            (|value| !is_plain_amount(value), "has letters, and only a currency sign is documented"),
            (|value| amount(value).contains(','), "has commas, and only digits and decimals are documented"),
        ],
    ),
    rule(
        "phone_number",
        (|value| count(value) > 17 || any(value, char::is_alphabetic), "must be at most 17 digits and symbols"),
        &[],
    ),
    rule(
        "car_number",
        (|value| count(value) > 8, "must be at most 8 characters"),
        &[(|value| any(value, |c| !c.is_alphanumeric()), "has characters that are not letters, digits or Chinese")],
    ),
    rule("time", NO_MOMENT, &[(|value| !value.contains([':', '：']), UNUSUAL_MOMENT)]),
    rule("date", NO_MOMENT, &[(|value| !value.contains(['年', '-', '/', '.']), UNUSUAL_MOMENT)]),
    rule("const", ANY, &[]),
    rule("enum_string", ANY, &[]),
];

/// Checks the value of a key.
pub fn judge(key: &str, value: &str) -> Judgement {
    let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
    if value.is_empty() {
        return Wrong("must not be empty");
    }
    if kind.len() == key.len() {
        return Doubtful("has a key that does not end in a number; expected a key such as thing1");
    }
    let Some(Rule { wrong: (is_wrong, sentence), doubtful, .. }) = RULES.iter().find(|rule| rule.kind == kind) else {
        return Doubtful("has a key of an unknown kind; expected a key such as thing1");
    };
    if is_wrong(value) {
        return Wrong(sentence);
    }
    let doubt = doubtful.iter().find(|(is_doubtful, _)| is_doubtful(value));
    doubt.map_or(Fine, |(_, sentence)| Doubtful(sentence))
}

fn count(value: &str) -> usize {
    value.chars().count()
}

/// Chinese characters, including the extensions.
fn is_chinese(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}' | '〇')
}

fn any(value: &str, what: impl Fn(char) -> bool) -> bool {
    value.chars().any(what)
}

fn is_number(value: &str) -> bool {
    let digits = value.chars().filter(char::is_ascii_digit).count();
    (1..=32).contains(&digits) && is_decimal(value.strip_prefix(['-', '+']).unwrap_or(value))
}

/// True for digits with at most one decimal point.
fn is_decimal(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && value.matches('.').count() <= 1
}

/// The number of an amount, without one currency sign and without 元.
fn amount(value: &str) -> &str {
    let number = value.strip_suffix('元').unwrap_or(value);
    let sign = |c: char| !c.is_alphanumeric() && !matches!(c, '.' | ',' | ' ');
    number.strip_prefix(sign).unwrap_or(number)
}

fn is_plain_amount(value: &str) -> bool {
    let number = amount(value).replace(',', "");
    let whole = number.split('.').next().unwrap_or_default();
    (1..=10).contains(&whole.len()) && is_decimal(&number)
}

/// WeChat accepts currencies written as letters in practice, but does not document them.
fn is_lettered_amount(value: &str) -> bool {
    let all = amount(value);
    let number = all.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == ' ');
    number.len() < all.len() && (1..=13).contains(&number.len()) && is_decimal(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_accepts_documented_values() {
        for (key, value) in [
            ("thing1", "20 characters, fine."),
            ("thing2", "十个汉字十个汉字十个"),
            ("number3", "12345678901234567890123456789012"),
            ("number3", "0.5"),
            ("letter4", "abcXYZ"),
            ("symbol5", "!@#$%"),
            ("character_string6", "Order-2019/10#1"),
            ("phrase7", "审核通过"),
            ("name8", "张三"),
            ("name8", "Maria-Magdalena Rose"),
            ("amount9", "¥1234567890.55"),
            ("amount9", "100元"),
            ("phone_number10", "+86-0766-66888866"),
            ("car_number11", "粤A8Z888挂"),
            ("time12", "15:01"),
            ("time12", "2019年10月1日 15:01"),
            ("date13", "2019年10月1日"),
            ("enum_string14", "anything"),
        ] {
            assert_eq!(judge(key, value), Fine, "{key}: {value}");
        }
    }

    #[test]
    fn values_that_wechat_certainly_refuses_are_wrong() {
        for (key, value) in [
            ("thing1", "21 characters are too"),
            ("thing1", ""),
            ("number2", "123456789012345678901234567890123"),
            ("number2", "twelve"),
            ("number2", "1.2.3"),
            ("letter3", "abc1"),
            ("letter3", "abcdefghijklmnopqrstuvwxyzabcdefg"),
            ("symbol4", "!!!!!!"),
            ("character_string5", "订单"),
            ("character_string5", "123456789012345678901234567890123"),
            ("phrase6", "一二三四五六"),
            ("name7", "一二三四五六七八九十一"),
            ("name7", "abcdefghijklmnopqrstu"),
            ("amount8", "12345678901"),
            ("amount8", "免费"),
            ("amount8", "¥¥1"),
            ("phone_number9", "123456789012345678"),
            ("phone_number9", "call me"),
            ("car_number10", "123456789"),
            ("time11", "soon"),
            ("date12", "明天"),
        ] {
            assert!(matches!(judge(key, value), Wrong(_)), "{key}: {value}");
        }
    }

    #[test]
    fn doubtful_values_pass_with_a_warning() {
        for (key, value) in [
            ("thing1", "十一个汉字是不是太多啊"),
            ("number2", "-1"),
            ("symbol3", "ab"),
            ("character_string4", "caf\u{e9}"),
            ("phrase5", "ok"),
            ("name6", "Tom2"),
            ("amount7", "1,000.00"),
            ("amount7", "USD 5"),
            ("car_number8", "A-1"),
            ("time9", "1501"),
            ("date10", "20191001"),
            ("keyword1", "x"),
            ("thing", "x"),
        ] {
            assert!(matches!(judge(key, value), Doubtful(_)), "{key}: {value}");
        }
    }
}
