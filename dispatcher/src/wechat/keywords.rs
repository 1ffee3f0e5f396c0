//! Rules for the values of a subscription message. WeChat derives the kind of a value from its key (`thing1`,
//! `amount3`) and refuses a message with 47003 if a value does not fit its kind. A failed send could cost a grant, so
//! values that WeChat certainly refuses are reported before sending. Doubtful values pass with a warning.
//!
//! The limits are from the page on subscription messages in the mini program documentation. It does not say how wide
//! characters count. Here each character counts as one, and a warning is given if the value would be too long with wide
//! characters counted as two.

/// What WeChat is expected to do with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Fine,
    /// WeChat may refuse or truncate it; the text says why.
    Doubtful(&'static str),
    /// WeChat certainly refuses it; the text says what the value must be.
    Wrong(&'static str),
}

use Judgement::{Doubtful, Fine, Wrong};

/// The prefix of the keys of a kind, and the check of its values.
type Rule = (&'static str, fn(&str) -> Judgement);

const RULES: &[Rule] = &[
    ("thing", thing),
    ("number", number),
    ("letter", letter),
    ("symbol", symbol),
    ("character_string", character_string),
    ("phrase", phrase),
    ("name", name),
    ("amount", amount),
    ("phone_number", phone_number),
    ("car_number", car_number),
    ("time", time),
    ("date", date),
    // Each template defines the values of its own enumerations.
    ("const", |_| Fine),
    ("enum_string", |_| Fine),
];

/// Checks the value of a key.
pub fn judge(key: &str, value: &str) -> Judgement {
    let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
    match RULES.iter().find(|(prefix, _)| *prefix == kind) {
        _ if value.is_empty() => Wrong("must not be empty"),
        _ if kind.len() == key.len() => {
            Doubtful("has a key that does not end in a number; expected a key such as thing1")
        }
        Some((_, rule)) => rule(value),
        None => Doubtful("has a key of an unknown kind; expected a key such as thing1"),
    }
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

fn thing(value: &str) -> Judgement {
    let wide = value.chars().filter(|c| !c.is_ascii()).count();
    match count(value) {
        21.. => Wrong("must be at most 20 characters"),
        characters if characters + wide > 20 => {
            Doubtful("has wide characters; if WeChat counts them twice, it is longer than 20")
        }
        _ => Fine,
    }
}

fn number(value: &str) -> Judgement {
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let unsigned = value.strip_prefix(['-', '+']).unwrap_or(value);
    if digits == 0 || digits > 32 || !is_decimal(unsigned) {
        Wrong("must be a number of at most 32 digits; decimals are allowed")
    } else if unsigned.len() < value.len() {
        Doubtful("has a sign, and only digits and decimals are documented")
    } else {
        Fine
    }
}

/// True for digits with at most one decimal point.
fn is_decimal(value: &str) -> bool {
    value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && value.matches('.').count() <= 1
}

fn letter(value: &str) -> Judgement {
    let right = count(value) <= 32 && !any(value, |c| !c.is_ascii_alphabetic());
    if right { Fine } else { Wrong("must be at most 32 letters") }
}

fn symbol(value: &str) -> Judgement {
    if count(value) > 5 {
        Wrong("must be at most 5 symbols")
    } else if any(value, char::is_alphanumeric) {
        Doubtful("has letters or digits, and only symbols are documented")
    } else {
        Fine
    }
}

fn character_string(value: &str) -> Judgement {
    if count(value) > 32 || any(value, is_chinese) {
        Wrong("must be at most 32 digits, letters and symbols")
    } else if !value.is_ascii() {
        Doubtful("has characters outside ASCII, and only digits, letters and symbols are documented")
    } else {
        Fine
    }
}

fn phrase(value: &str) -> Judgement {
    if count(value) > 5 {
        Wrong("must be at most 5 Chinese characters")
    } else if any(value, |c| !is_chinese(c)) {
        Doubtful("has characters that are not Chinese")
    } else {
        Fine
    }
}

fn name(value: &str) -> Judgement {
    let most = if any(value, is_chinese) { 10 } else { 20 };
    if count(value) > most {
        Wrong("must be at most 10 characters if any is Chinese, otherwise 20")
    } else if any(value, |c| c.is_ascii_digit()) {
        Doubtful("has digits, and only letters, Chinese characters and symbols are documented")
    } else {
        Fine
    }
}

fn amount(value: &str) -> Judgement {
    const SHAPE: &str =
        "must be at most one currency sign, up to 10 digits, optional decimals, and optionally 元 at the end";
    let number = value.strip_suffix('元').unwrap_or(value);
    let sign = |c: char| !c.is_alphanumeric() && !matches!(c, '.' | ',' | ' ');
    let number = number.strip_prefix(sign).unwrap_or(number);
    let plain = number.replace(',', "");
    let whole = plain.split('.').next().unwrap_or_default();
    if whole.is_empty() || whole.len() > 10 || !is_decimal(&plain) {
        // WeChat accepts currencies written as letters in practice, but does not document them.
        let letters = number.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == ' ');
        let named = letters.len() < number.len() && !letters.is_empty() && letters.len() <= 13 && is_decimal(letters);
        if named { Doubtful("has letters, and only a currency sign is documented") } else { Wrong(SHAPE) }
    } else if plain.len() < number.len() {
        Doubtful("has commas, and only digits and decimals are documented")
    } else {
        Fine
    }
}

fn phone_number(value: &str) -> Judgement {
    let right = count(value) <= 17 && !any(value, char::is_alphabetic);
    if right { Fine } else { Wrong("must be at most 17 digits and symbols") }
}

fn car_number(value: &str) -> Judgement {
    if count(value) > 8 {
        Wrong("must be at most 8 characters")
    } else if any(value, |c| !c.is_alphanumeric()) {
        Doubtful("has characters that are not letters, digits or Chinese")
    } else {
        Fine
    }
}

fn time(value: &str) -> Judgement {
    moment(value, |value| value.contains([':', '：']))
}

fn date(value: &str) -> Judgement {
    moment(value, |value| value.contains(['年', '-', '/', '.']))
}

fn moment(value: &str, looks_right: fn(&str) -> bool) -> Judgement {
    if !any(value, |c| c.is_ascii_digit()) {
        Wrong("must be a time or a date, such as 15:01 or 2019年10月1日 15:01")
    } else if !looks_right(value) {
        Doubtful("does not look like 15:01 or 2019年10月1日 15:01")
    } else {
        Fine
    }
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
