use proptest::prelude::*;

use super::{Doubtful, Fine, KINDS, Kind, Wrong, fit, judge};

const TWENTY: &str = "一二三四五六七八九十一二三四五六七八九十";

#[test]
fn documented_values_of_each_kind_pass_without_a_word() {
    for (key, values) in [
        ("thing1", &["20 characters, fine.", TWENTY, "《三体》，第1章。", "½ price"][..]),
        ("short_thing1", &["待付款", "五个汉字的"]),
        ("number2", &["12345678901234567890123456789012", "0.5", "007"]),
        ("letter3", &["abcXYZ", "abcdefghijklmnopqrstuvwxyzABCDEF"]),
        ("symbol4", &["!@#$%", "，。！？；"]),
        ("character_string5", &["Order-2019/10#1", "abcdefghijklmnopqrstuvwxyz012345"]),
        ("phrase6", &["审核通过", "一二三四五", "〇"]),
        ("name7", &["张三", "Maria-Magdalena Rose", "一二三四五六七八九十", "阿卜杜拉·本", "李Lee"]),
        ("amount8", &["¥1234567890.55", "￥100", "$9.99", "€5", "100元", "¥0.5元", "100"]),
        ("phone_number9", &["+86-0766-66888866", "110", "(020)8888*1234"]),
        ("car_number10", &["粤A8Z888挂", "粤A12345", "A12345"]),
        (
            "date11",
            &[
                "2019年10月1日",
                "2019年10月1日 15:01",
                "2019年10月01日15:01",
                "2019年10月",
                "10月1日",
                "10月1日 15:01",
                "2019-10-01",
                "2019/1/1",
                "2019.10.01 15:01:30",
                "2019-10",
                "10/01",
                "2020年2月29日",
                "2月29日",
                "2019年10月1日~2019年10月7日",
                "2019-10-01 15:01 ~ 2019-10-07 09:00",
                "2019年10月1日 09:00~18:00",
            ],
        ),
        (
            "time12",
            &[
                "15:01",
                "9:05",
                "00:00:00",
                "2019年10月1日 15:01",
                "2019-10-01 15:01",
                "09:00~18:00",
                "10月1日 9:00~9:30",
            ],
        ),
        ("enum13", &["anything", "1"]),
        ("enum_string14", &["anything"]),
        ("const15", &["一二三四五六七八九十一二三四五六七八九十一"]),
    ] {
        for value in values {
            assert_eq!(judge(key, value), Fine, "{key}: {value}");
        }
    }
}

#[test]
fn values_that_wechat_certainly_refuses_are_wrong() {
    for (key, values) in [
        ("thing1", &["21 characters are too", "一二三四五六七八九十一二三四五六七八九十一"][..]),
        ("number2", &["-1", "−1", "123456789012345678901234567890123", "twelve", "1.2.3", "12个", "NaN", "."]),
        ("letter3", &["abc1", "abcdefghijklmnopqrstuvwxyzabcdefg", "a字", "a-b"]),
        ("symbol4", &["!!!!!!"]),
        ("character_string5", &["订单", "No订1", "123456789012345678901234567890123"]),
        ("phrase6", &["一二三四五六", "第5次", "7"]),
        ("name7", &["一二三四五六七八九十一", "abcdefghijklmnopqrstu", "user25", "R2D2", "一二三四五六七八九Lee"]),
        ("amount8", &["12345678901", "免费", "¥¥1", "-1", "¥-1", "-¥1", "－1", "1.2.3"]),
        ("phone_number9", &["123456789012345678", "call me"]),
        ("car_number10", &["123456789", "粤A8Z8888挂"]),
        (
            "date11",
            &[
                "明天",
                "2019-10-01T15:01:00Z",
                "2019-10-01T15:01+08:00",
                "20191001T150100Z",
                "2019-10-01T15:01:00.000-0500",
                "2019年13月1日",
                "2019-10-32",
                "2019-0-1",
                "2019年10月1日 25:99",
                "10月32日",
            ],
        ),
        ("time12", &["soon", "25:99", "15:60", "15:01:60", "2019-10-01T15:01:00Z", "09:00~25:00", "2019-13-01 15:01"]),
    ] {
        for value in values {
            assert!(matches!(judge(key, value), Wrong(_)), "{key}: {value}: {:?}", judge(key, value));
        }
    }
}

#[test]
fn no_value_is_empty_or_has_control_characters() {
    for key in
        KINDS.iter().map(|kind| format!("{}1", kind.name)).chain(["keyword1".into(), "thing".into(), String::new()])
    {
        assert_eq!(judge(&key, ""), Wrong("must not be empty"));
        for value in ["a\nb", "a\r\nb", "\t", "\u{0}", "a\u{85}", "a\u{2028}b"] {
            assert_eq!(
                judge(&key, value),
                Wrong("must not have control characters or line breaks"),
                "{key}: {value:?}"
            );
        }
    }
}

#[test]
fn doubtful_values_pass_with_a_warning() {
    for (key, values) in [
        ("thing1", &["done 👍", "𠮷野家𠮷野家𠮷野家𠮷野家𠮷野家𠮷野家", " ", "a\u{200b}b"][..]),
        ("short_thing1", &["六个汉字的字", "👍"]),
        ("number2", &["+1", "1,000", "1.", ".5", "50%", "１２", "1 000"]),
        ("letter3", &["a b", "caf\u{e9}"]),
        ("symbol4", &["ab", "* *", "👍"]),
        ("character_string5", &["caf\u{e9}", "a b", "a，b", " "]),
        ("phrase6", &["ok", "已 完", "完成！", "１"]),
        ("name7", &["Jos\u{e9}", "张三👍", "  "]),
        (
            "amount8",
            &["1,000.00", "USD 5", "HK$5", "US$ 5", "+5", "¥ 5", "100 元", "约5元", "10-20", ".5", "1e3", "5美元"],
        ),
        ("phone_number9", &["电话110", "020 110", "010-1234 ext 5", "＋86"]),
        ("car_number10", &["A-1", "A粤1", "é"]),
        (
            "date11",
            &[
                "15:01",
                "20191001",
                "1569888000",
                "2019-10-01T15:01",
                "2019年2月29日",
                "2月30日",
                "2019-10-01 24:00",
                "2019-10/01",
                "31/12/2019",
                "2019年10月1日 周二",
                "2019年10月1日至10月7日",
                "2019-10-01~",
                "2019-10-01~15:01",
                "2019-10-01~2019-10-02~2019-10-03",
                "2019-10-0115:01",
                "13/45",
                "Tuesday 1",
            ],
        ),
        ("time12", &["1501", "15：01", "15:01 pm", "24:00", "2019年10月1日", "15:1", "123:45", " 15:01", "9点"]),
        ("enum13", &[" "]),
        ("keyword1", &["x"]),
        ("thing", &["x"]),
        ("Thing1", &["x"]),
        ("1", &["x"]),
        ("", &["x"]),
    ] {
        for value in values {
            assert!(matches!(judge(key, value), Doubtful(_)), "{key}: {value}: {:?}", judge(key, value));
        }
    }
}

#[test]
fn only_texts_for_people_are_cut() {
    for (key, value, cut) in [
        ("thing1", "Order 46 is ready at counter 3", Some("Order 46 is ready a…")),
        ("thing1", "一二三四五六七八九十一二三四五六七八九十一", Some("一二三四五六七八九十一二三四五六七八九…")),
        ("thing1", "A counter that is as far away", Some("A counter that is a…")),
        ("thing1", "eighteen letters so and more", Some("eighteen letters so…")),
        ("thing1", TWENTY, None),
        ("short_thing2", "待付款的订单", Some("待付款的…")),
        ("name3", "一二三四五六七八九十一", Some("一二三四五六七八九…")),
        ("name3", "Maria-Magdalena Rosenberg", Some("Maria-Magdalena Ros…")),
        ("name3", "Maria-Magdalena 张", Some("Maria-Mag…")),
        ("number4", "123456789012345678901234567890123", None),
        ("amount5", "¥12345678901", None),
        ("phone_number6", "123456789012345678", None),
        ("character_string7", "123456789012345678901234567890123", None),
        ("phrase8", "一二三四五六", None),
        ("car_number9", "123456789", None),
        ("date10", "a very long text that is no date", None),
        ("enum_string11", "a very long text that is in no list", None),
        ("keyword1", "a very long text of no known kind", None),
        ("thing", "a very long text of no known kind", None),
    ] {
        assert_eq!(fit(key, value).map(|(cut, _)| cut).as_deref(), cut, "{key}: {value}");
    }
}

#[test]
fn cut_does_not_split_what_looks_like_one_character() {
    let start = "x".repeat(18);
    // An accent, a skin tone and a joined family would begin in the 19th place and end after it.
    for sequence in ["e\u{301}", "👍\u{1f3fd}", "👨\u{200d}👩\u{200d}👧"] {
        assert_eq!(fit("thing1", &format!("{start}{sequence} and more")).unwrap().0, format!("{start}…"), "{sequence}");
    }
    let endless = "\u{301}".repeat(30);
    assert_eq!(fit("thing1", &endless).unwrap().0.chars().count(), 20);
}

fn keys() -> impl Strategy<Value = String> {
    let known: Vec<_> = KINDS.iter().map(|kind| format!("{}1", kind.name)).collect();
    prop_oneof![8 => prop::sample::select(known), 1 => any::<String>()]
}

/// Texts of all characters, and texts made of parts that the rules look at.
fn texts() -> impl Strategy<Value = String> {
    let part = "[0-9]{1,5}|[-.:/~年月日T+ ]|[¥$元]|Z|\\PC|[一-十]{1,3}|👍\u{200d}|\u{301}|\n";
    prop_oneof![any::<String>(), prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())]
}

/// What each kind's documents allow.
fn documented() -> impl Strategy<Value = (&'static str, String)> {
    let year = "20[0-9]{2}";
    let day =
        format!("({year}年(1[0-2]|[1-9])月([12]?[1-8]日)?|1[0-2]月2[0-8]日|{year}(-0[1-9]){{2}}|{year}(/1[0-2]){{2}})");
    let clock = "(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?";
    let of = |key: &'static str, pattern: String| {
        prop::string::string_regex(&pattern).unwrap().prop_map(move |value| (key, value)).boxed()
    };
    prop::strategy::Union::new([
        of("thing1", "[一-龥a-zA-Z0-9，。!-/]{1,20}".into()),
        of("short_thing1", "[一-龥a-zA-Z0-9]{1,5}".into()),
        of("number1", "[0-9]{1,16}(\\.[0-9]{1,16})?".into()),
        of("letter1", "[a-zA-Z]{1,32}".into()),
        of("symbol1", "[!-/:-@，。]{1,5}".into()),
        of("character_string1", "[!-~]{1,32}".into()),
        of("phrase1", "[一-龥]{1,5}".into()),
        of("name1", "[一-龥]{1,10}|[a-zA-Z!-/:-@]{1,20}|[一-龥a-zA-Z·]{1,10}".into()),
        of("amount1", "[¥$€]?[0-9]{1,10}(\\.[0-9]{1,2})?元?".into()),
        of("phone_number1", "[0-9][-+0-9*]{0,16}".into()),
        of("car_number1", "[一-龥]?[A-Z0-9]{1,6}[一-龥]?".into()),
        of("date1", format!("{day}( {clock})?(~{day}( {clock})?)?")),
        of("time1", format!("({day} )?{clock}(~({day} )?{clock})?")),
        of("enum1", "\\PC{0,30}x".into()),
    ])
}

proptest! {
    #[test]
    fn arbitrary_values_are_judged_and_cut_to_the_length_of_their_kind(key in keys(), value in texts()) {
        let judgement = judge(&key, &value);
        if let Doubtful(sentence) | Wrong(sentence) = judgement {
            prop_assert!(!sentence.is_empty());
        }
        let cut = fit(&key, &value);
        if let Some((cut, most)) = &cut {
            prop_assert!(value.chars().count() > *most && cut.chars().count() <= *most && cut.ends_with('…'));
            prop_assert_eq!(fit(&key, cut), None);
        }
        let fitted = cut.map_or(value, |(cut, _)| cut);
        let length = Kind::of(&key).and_then(|kind| kind.length.as_ref()).filter(|length| length.cut);
        prop_assert!(length.is_none_or(|length| fitted.chars().count() <= length.of(&fitted)));
    }

    #[test]
    fn documented_values_are_fine((key, value) in documented()) {
        prop_assert_eq!(judge(key, &value), Fine);
    }
}
