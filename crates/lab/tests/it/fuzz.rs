//! The overlay takes whatever comes.

use ionet_lab::fuzz::{self, Options, Through};

#[test]
fn a_few_seconds_of_malformed_input_break_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = fuzz::overlay(&Options { seconds: 6, seed: 4, dir: dir.path().into() }).unwrap();
    assert_eq!(outcome.found, None);
    assert!(outcome.let_through > 0, "some of what is made is valid, or nothing is tried: {outcome:?}");
    for through in Through::ALL {
        assert!(outcome.tried.contains_key(&through), "{through:?} is tried: {outcome:?}");
    }
}

#[test]
fn what_was_found_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("input.txt");
    let input = fuzz::Input { through: Through::Sealed, bytes: vec![0; 40] };
    std::fs::write(&file, input.line()).unwrap();
    assert_eq!(fuzz::Input::read(&file).unwrap(), input);
    fuzz::again(&file).unwrap();
}
