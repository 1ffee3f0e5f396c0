//! Rules for the keyword values of a subscription message. The name of a key is its kind and a number: `thing3` is a
//! `thing`.
//!
//! Every character counts as one. Where WeChat's rule says digits, the decimal point does not count. Of values that are
//! not documented, those pass that senders report as accepted, such as a phone number with Chinese.

/// The values that a kind of keyword accepts.
enum Rule {
    /// At most this many characters, all of which match.
    Characters(usize, fn(char) -> bool),
    /// At most this many digits, optionally with one decimal point between them.
    Number(usize),
    /// An optional currency sign, at most this many digits, optionally decimals, and an optional 元 at the end.
    Amount(usize),
    /// A name that contains Chinese characters: at most the first number of characters. Without Chinese characters: at
    /// most the second.
    Name(usize, usize),
    /// At most this many letters and digits. The first and the last may be Chinese.
    CarNumber(usize),
    /// One time or date, or two with `~` between them, each of which matches. The second of two may lack its date.
    Moments(fn(&str) -> bool),
}

/// All kinds that have a rule. A value of another kind may be anything but empty.
const RULES: &[(&str, Rule)] = &[
    ("thing", Rule::Characters(20, |_| true)),
    ("short_thing", Rule::Characters(5, |_| true)),
    ("number", Rule::Number(32)),
    ("letter", Rule::Characters(32, |c| c.is_ascii_alphabetic())),
    ("symbol", Rule::Characters(5, is_symbol)),
    ("character_string", Rule::Characters(32, |c| c.is_ascii_alphanumeric() || is_symbol(c))),
    ("time", Rule::Moments(|text| is_time(text) || is_date_and_time(text))),
    ("date", Rule::Moments(|text| is_date(text) || is_date_and_time(text))),
    ("amount", Rule::Amount(10)),
    ("phone_number", Rule::Characters(17, |c| c.is_ascii_digit() || is_symbol(c) || is_chinese(c))),
    ("car_number", Rule::CarNumber(8)),
    ("name", Rule::Name(10, 20)),
    ("phrase", Rule::Characters(5, is_chinese)),
];

const CURRENCY_SIGNS: &[char] = &['¥', '￥', '$', '＄', '€', '£', '₩', '₽', '₹', '฿', '₫', '₱', '₺', '₴'];

/// The problem with the value of this key, in the words of WeChat's answer. `None` if it is valid.
pub(crate) fn fault(key: &str, value: &str) -> Option<&'static str> {
    if value.is_empty() {
        return Some("is empty");
    }
    if value.contains(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        return Some("invalid");
    }
    let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let (_, rule) = RULES.iter().find(|(name, _)| *name == kind)?;
    (!rule.takes(value)).then_some("invalid")
}

impl Rule {
    fn takes(&self, value: &str) -> bool {
        let at_most = |longest: usize| value.chars().count() <= longest;
        match *self {
            Self::Characters(longest, passes) => at_most(longest) && value.chars().all(passes),
            Self::Number(digits) => is_number(value, digits),
            Self::Amount(digits) => {
                let letters =
                    value.strip_prefix("HK").or(value.strip_prefix("US")).filter(|rest| rest.starts_with('$'));
                let value = letters.unwrap_or(value);
                let number = value.strip_prefix(CURRENCY_SIGNS).unwrap_or(value);
                let number = number.strip_suffix('元').unwrap_or(number);
                let whole = number.split('.').next().unwrap_or_default();
                whole.len() <= digits && is_number(number, usize::MAX)
            }
            Self::Name(with_chinese, without) => {
                let longest = if value.contains(is_chinese) { with_chinese } else { without };
                let is_part = |c: char| is_chinese(c) || c.is_ascii_alphabetic() || is_symbol(c) || c == ' ';
                at_most(longest) && value.chars().all(is_part)
            }
            Self::CarNumber(longest) => {
                let middle = value.strip_prefix(is_chinese).unwrap_or(value);
                let middle = middle.strip_suffix(is_chinese).unwrap_or(middle);
                at_most(longest) && middle.chars().all(|c| c.is_ascii_alphanumeric())
            }
            Self::Moments(passes) => match value.split_once('~') {
                None => passes(value),
                Some((from, to)) => {
                    let (from, to) = (from.trim(), to.trim());
                    passes(from) && (passes(to) || is_date_and_time(from) && is_time(to))
                }
            },
        }
    }
}

fn is_number(text: &str, digits: usize) -> bool {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let given = text.chars().filter(char::is_ascii_digit).count();
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    given <= digits && is_digits(whole) && is_digits(decimals)
}

/// True for characters that are not letters of any script, digits or blanks.
fn is_symbol(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace() && !c.is_control()
}

fn is_chinese(c: char) -> bool {
    matches!(c, '〇' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

/// `2019年10月1日`, `2019年10月`, `10月1日`, or with `-`, `/` or `.` between the numbers.
fn is_date(text: &str) -> bool {
    after_date(text).is_some_and(str::is_empty)
}

/// `15:01` or `15:01:30`.
fn is_time(text: &str) -> bool {
    let mut parts = text.split(':');
    let mut next = |largest| parts.next().is_none_or(|part| number(part, 2).is_some_and(|n| n <= largest));
    text.contains(':') && next(23) && next(59) && next(59) && parts.next().is_none()
}

/// A date and a time with a blank between them. The blank is optional after 日 and 月.
fn is_date_and_time(text: &str) -> bool {
    let Some(rest) = after_date(text) else { return false };
    let is_apart = rest.starts_with(' ') || text.contains(['日', '月']);
    is_apart && is_time(rest.trim_start())
}

/// The rest of the text after the date at its start. The year or the day may be missing.
fn after_date(text: &str) -> Option<&str> {
    let (first, rest) = leading_number(text)?;
    let unit = rest.chars().next().filter(|c| matches!(c, '年' | '月' | '-' | '/' | '.'))?;
    let (second, rest) = leading_number(rest.strip_prefix(unit)?)?;
    let is_month = |text| number(text, 2).is_some_and(|n| (1..=12).contains(&n));
    let is_day = |text| number(text, 2).is_some_and(|n| (1..=31).contains(&n));
    let has_year = first.len() == 4 && is_month(second);
    match unit {
        '年' => {
            let rest = rest.strip_prefix('月').filter(|_| has_year)?;
            let day = leading_number(rest).and_then(|(day, after)| Some((day, after.strip_prefix('日')?)));
            day.map_or(Some(rest), |(day, after)| is_day(day).then_some(after))
        }
        '月' => rest.strip_prefix('日').filter(|_| is_month(first) && is_day(second)),
        _ => match rest.strip_prefix(unit) {
            Some(rest) => leading_number(rest).filter(|(day, _)| has_year && is_day(day)).map(|(_, rest)| rest),
            None => (has_year || is_month(first) && is_day(second)).then_some(rest),
        },
    }
}

/// The digits at the start of the text, and the rest. `None` without digits.
fn leading_number(text: &str) -> Option<(&str, &str)> {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    (!digits.is_empty()).then_some((digits, rest))
}

fn number(text: &str, most_digits: usize) -> Option<u32> {
    let is_short = (1..=most_digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_short.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_rules(kind: &str, right: &[&str], wrong: &[&str]) {
        let key = format!("{kind}7");
        for value in right {
            assert_eq!(fault(&key, value), None, "{key}: {value}");
        }
        for value in wrong {
            assert_eq!(fault(&key, value), Some("invalid"), "{key}: {value}");
        }
    }

    #[test]
    fn thing_is_anything_up_to_20_characters() {
        let chinese = "一二三四五六七八九十".repeat(2);
        assert_rules(
            "thing",
            &["x", &chinese, "Order 42, counter #3", "👍"],
            &[&format!("{chinese}。"), &"x".repeat(21)],
        );
    }

    #[test]
    fn short_thing_is_anything_up_to_5_characters() {
        assert_rules("short_thing", &["待付款", "12345"], &["六个汉字的字", "shipped"]);
    }

    #[test]
    fn number_has_32_digits_and_optional_decimals() {
        let longest = "1".repeat(32);
        let right = ["0", "007", "3.50", &longest, &format!("{}.1", "1".repeat(31))];
        assert_rules("number", &right, &[&format!("{longest}.1"), "1.", ".5", "1.2.3", "-1", "1 000", "一", "１", "x"]);
    }

    #[test]
    fn letter_is_at_most_32_latin_letters() {
        assert_rules("letter", &["aZ", &"x".repeat(32)], &["a1", "a b", "é", "字", &"x".repeat(33)]);
    }

    #[test]
    fn symbol_is_at_most_five_without_letters_or_digits() {
        assert_rules("symbol", &["*", "+-*/=", "，。！？；"], &["a", "1", "字", "* *", "******"]);
    }

    #[test]
    fn character_string_is_digits_letters_and_symbols() {
        assert_rules("character_string", &["SF-1024/b", &"x".repeat(32)], &["编号1", "a b", &"x".repeat(33)]);
    }

    #[test]
    fn phrase_is_at_most_five_chinese_characters() {
        assert_rules("phrase", &["已完成", "一二三四五"], &["一二三四五六", "ok", "已 完", "完成！", "5"]);
    }

    #[test]
    fn name_is_10_chinese_characters_or_20_letters() {
        let chinese = "一二三四五六七八九十";
        let right = [chinese, "Ada Lovelace", "O'Brien-Smith", "阿卜杜拉·本", "李Lee", &"x".repeat(20)];
        assert_rules("name", &right, &[&format!("{chinese}一"), "一二三四五六七八九Lee", &"x".repeat(21), "R2D2"]);
    }

    #[test]
    fn amount_has_a_sign_ten_digits_and_optional_yuan() {
        let right = ["¥100", "￥1234567890.55", "100元", "¥0.5元", "$9.99", "100", "HK$5", "US$5"];
        assert_rules(
            "amount",
            &right,
            &["¥¥1", "1¥", "¥", "元", "¥12345678901", "1,000", "100 元", "-1", "¥-1", "USD 5", "¥1."],
        );
    }

    #[test]
    fn phone_number_is_17_digits_and_symbols() {
        assert_rules(
            "phone_number",
            &["+86-0766-66888866", "110", "电话110"],
            &["+86-0766-668888666", "020 110", "call"],
        );
    }

    #[test]
    fn car_number_may_begin_and_end_in_chinese() {
        assert_rules("car_number", &["粤A8Z888挂", "粤A12345", "A12345"], &["粤A8Z8888挂", "A粤12345", "粤A-123"]);
    }

    #[test]
    fn date_may_have_a_time_and_an_end() {
        let right = [
            "2019年10月1日",
            "2019年10月01日 15:01",
            "2019年10月1日15:01",
            "2019-10-01",
            "2019/1/1",
            "2019.10.01 15:01:30",
            "2019年10月1日~2019年10月7日",
            "2019-10-01 15:01 ~ 2019-10-07 09:00",
            "2019年10月",
            "10月1日 15:01",
            "2019-10",
            "10/01",
            "2019年10月1日 09:00~18:00",
        ];
        let wrong = [
            "15:01",
            "2019年10",
            "10月",
            "13/01",
            "2019年10月1日~18:00",
            "2019-10-01T15:01:00Z",
            "19-10-01",
            "2019-13-01",
            "2019-10-32",
            "2019-0-1",
            "2019-10/01",
            "2019年10-01",
            "2019-10-0115:01",
            "2019-10-01 25:01",
            "2019-10-01T15:01",
            "2019-10-01~",
            "2019-10-01~2019-10-02~2019-10-03",
            "tomorrow",
        ];
        assert_rules("date", &right, &wrong);
    }

    #[test]
    fn time_may_have_a_date_and_an_end() {
        let right = ["15:01", "9:05", "15:01:30", "2019年10月1日 15:01", "2019-10-01 15:01", "09:00~18:00"];
        let wrong =
            ["2019年10月1日", "24:00", "15:60", "15", "15:", ":01", "15:01:30:00", "15：01", "15:01 pm", "15:001"];
        assert_rules("time", &right, &wrong);
    }

    #[test]
    fn no_value_has_control_characters_or_line_breaks() {
        for (key, value) in [("thing1", "a\nb"), ("name2", "a\tb"), ("enum3", "\r"), ("keyword4", "a\u{2028}b")] {
            assert_eq!(fault(key, value), Some("invalid"), "{key}: {value:?}");
        }
    }

    #[test]
    fn kind_without_a_rule_accepts_anything_but_an_empty_value() {
        for key in ["enum1", "const2", "keyword1", "Thing1", "thing1a", "7", ""] {
            assert_eq!(fault(key, &"x".repeat(100)), None, "{key}");
            assert_eq!(fault(key, ""), Some("is empty"), "{key}");
        }
        assert!(RULES.iter().all(|(kind, _)| fault(kind, "") == Some("is empty")));
    }
}
