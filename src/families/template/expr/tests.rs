use proptest::prelude::*;

use super::parse::Mistake;
use super::*;
use crate::families::template::element::Element;
use crate::families::template::names::{ElementOf, MOST, Meaning, Names, Section};

/// `a`, `b`, `c` are numbers, `dtype` and `mode` words, `x` and `idx` tensors, `eps` a float.
fn names() -> Names {
    let mut names = Names::default();
    for name in ["a", "b", "c"] {
        names.add(name, Section::Spec, Meaning::Number);
    }
    names.add("dtype", Section::Spec, Meaning::Word { elements: true });
    names.word("fast");
    names.add("mode", Section::Tune, Meaning::Word { elements: false });
    names.add("x", Section::Args, Meaning::Tensor(ElementOf::Word(3)));
    names.add("idx", Section::Args, Meaning::Tensor(ElementOf::Fixed(Element::I64)));
    names.add("eps", Section::Args, Meaning::Float);
    names
}

fn values(a: i64, b: i64, c: i64) -> Values {
    let mut values = [0; MOST];
    values[..6].copy_from_slice(&[a, b, c, Element::Bf16.id(), 12, 16]);
    values
}

fn eval(text: &str) -> i64 {
    parse(text, &names()).unwrap_or_else(|e| panic!("{text}: {e:?}")).eval(&values(7, 2, -3)).expect("has a value")
}

#[test]
fn operators_bind_as_in_c() {
    for (text, value) in [
        ("a", 7),
        ("1 + a * b", 15),
        ("(1 + a) * b", 16),
        ("a - b - 1", 4),
        ("a / b % 2", 1),
        ("a % b == 1", 1),
        ("a < b || a > b && b == 2", 1),
        ("a >= 7 && c <= 0 - 3 && a != b", 1),
        ("5 && 0", 0),
        ("0 || 5", 1),
        ("ceil_div(a, b)", 4),
        ("ceil_div(8, b)", 4),
        ("ceil_div(c, b)", -1),
        ("min(a, b, 1 + 0)", 1),
        ("max(a, b)*2", 14),
        ("sizeof(dtype)", 2),
        ("sizeof(x) + sizeof(idx) + sizeof(f64)", 18),
        ("align(x) >= 8 * sizeof(dtype)", 1),
        ("dtype == bf16", 1),
        ("bf16 != dtype || mode == fast", 1),
        ("c / 2", -1),
        ("-c * 2 - -1", 7),
    ] {
        assert_eq!(eval(text), value, "{text}");
    }
}

#[test]
fn the_right_side_is_evaluated_where_it_decides() {
    assert_eq!(eval("b != 2 && a / 0 == 1"), 0);
    assert_eq!(eval("b == 2 || a / 0 == 1"), 1);
}

#[test]
fn what_has_no_value_says_why() {
    for (text, fault) in [
        ("a / (b - 2)", Fault::DivisionByZero),
        ("a % (b - 2)", Fault::DivisionByZero),
        ("ceil_div(a, b - 2)", Fault::DivisionByZero),
        ("9223372036854775807 + b", Fault::Overflow),
        ("9223372036854775807 * b", Fault::Overflow),
        ("0 - 9223372036854775807 - b", Fault::Overflow),
        ("(0 - 9223372036854775807 - 1) / (c + b)", Fault::Overflow),
        ("(0 - 9223372036854775807 - 1) % (c + b)", Fault::Overflow),
        ("ceil_div(0 - 9223372036854775807 - 1, c + b)", Fault::Overflow),
    ] {
        assert_eq!(parse(text, &names()).expect("parses").eval(&values(7, 2, -3)), Err(fault), "{text}");
    }
    assert_eq!(Fault::DivisionByZero.to_string(), "divides by zero");
    assert_eq!(Fault::Overflow.to_string(), "its value does not fit 64 bits");
}

#[test]
fn mistakes_say_where_and_what() {
    for (text, at, what) in [
        ("", 0, "ends where a number, a name or '(' should follow"),
        ("a +", 3, "ends where a number, a name or '(' should follow"),
        ("a b", 2, "'b' stands where an operator or the end should"),
        ("a + )", 4, "')' stands where a number, a name or '(' should"),
        ("(a", 2, "ends where ')' should follow"),
        ("min(a)", 5, "')' stands where ',' should"),
        ("ceil_div(a, b, c)", 13, "',' stands where ')' should"),
        ("nope", 0, "nothing is named 'nope'"),
        ("sizeof(nope)", 7, "nothing is named 'nope'"),
        ("sizeof(a)", 7, "'a' is no tensor and no type, so it has no sizeof"),
        ("sizeof(mode)", 7, "'mode' is no tensor and no type, so it has no sizeof"),
        ("align(a)", 6, "'a' is no tensor, so it has no align"),
        ("align(1)", 6, "'1' stands where a name should"),
        ("x", 0, "'x' is a tensor: ask for its align or its sizeof"),
        ("eps", 0, "'eps' is no integer, and expressions are of integers"),
        ("a ? b", 2, "'?' is nothing in an expression"),
        ("a = b", 2, "'=' is nothing in an expression"),
        ("1.5", 0, "'1.5' is not an integer"),
        ("12q", 0, "'12q' is not an integer"),
        ("99999999999999999999", 0, "'99999999999999999999' is not an integer"),
        ("a < b < c", 6, "compares what was compared: write a < b && b < c"),
        ("-dtype", 1, "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof"),
        ("a + dtype", 4, "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof"),
        ("dtype", 0, "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof"),
        ("dtype < bf16", 0, "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof"),
        ("a == bf16", 5, "is a word, which can only be compared, with '==' and '!=', or asked for its sizeof"),
    ] {
        assert_eq!(parse(text, &names()).expect_err(text), Mistake { at, what: what.into() }, "{text}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let mistake = |text: String| parse(&text, &names()).expect_err("is refused").what;
    assert_eq!(mistake("(".repeat(900)), "nests more than 24 parentheses");
    assert_eq!(mistake("-".repeat(900)), "nests more than 24 parentheses");
    assert_eq!(mistake("min(1,".repeat(150)), "nests more than 24 parentheses");
    assert_eq!(mistake("1+".repeat(300) + "1"), "is too long to be evaluated");
    assert_eq!(mistake("1".repeat(2000)), "is longer than 1024 letters");
    assert_eq!(eval(&format!("{}a{}", "(".repeat(24), ")".repeat(24))), 7);
}

#[test]
fn says_what_it_reads() {
    let expr = parse("a * b + sizeof(x) + align(idx)", &names()).expect("parses");
    assert_eq!(expr.reads().collect::<Vec<_>>(), [0, 1, 3, 6]);
    assert_eq!(expr.as_name(), None);
    assert_eq!(parse(" c ", &names()).expect("parses").as_name(), Some(2));
}

/// An expression's text with the value that a second evaluator, on 128-bit integers, gives it.
fn expressions() -> impl Strategy<Value = (String, Option<i128>)> {
    let leaf = prop_oneof![
        (0i64..100).prop_map(|n| (n.to_string(), Some(i128::from(n)))),
        Just(("a".to_owned(), Some(7))),
        Just(("b".to_owned(), Some(2))),
        Just(("c".to_owned(), Some(-3))),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        let signs = vec!["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "&&", "||"];
        (inner.clone(), prop::sample::select(signs), inner).prop_map(|((left, x), sign, (right, y))| {
            let text = format!("({left} {sign} {right})");
            let of = |f: fn(i128, i128) -> Option<i128>| f(x?, y?);
            let value = match sign {
                "+" => of(i128::checked_add),
                "-" => of(i128::checked_sub),
                "*" => of(i128::checked_mul),
                "/" => of(i128::checked_div),
                "%" => of(i128::checked_rem),
                "==" => of(|x, y| Some((x == y).into())),
                "!=" => of(|x, y| Some((x != y).into())),
                "<" => of(|x, y| Some((x < y).into())),
                "<=" => of(|x, y| Some((x <= y).into())),
                ">" => of(|x, y| Some((x > y).into())),
                ">=" => of(|x, y| Some((x >= y).into())),
                "&&" => x.and_then(|x| if x == 0 { Some(0) } else { y.map(|y| (y != 0).into()) }),
                _ => x.and_then(|x| if x != 0 { Some(1) } else { y.map(|y| (y != 0).into()) }),
            };
            (text, value.filter(|v| i64::try_from(*v).is_ok()))
        })
    })
}

proptest! {
    #[test]
    fn values_are_those_of_wider_arithmetic((text, value) in expressions()) {
        // Longer or deeper ones are refused, which another test covers.
        if let Ok(expr) = parse(&text, &names()) {
            prop_assert_eq!(expr.eval(&values(7, 2, -3)).ok().map(i128::from), value, "{}", text);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "[a-cx0-9 +*/%<>=!&|(),-]{0,40}|\\PC{0,40}") {
        if let Ok(expr) = parse(&text, &names()) {
            let _ = expr.eval(&values(7, 2, -3));
        }
    }
}
