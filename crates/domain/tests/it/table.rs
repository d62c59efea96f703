//! The table of an order's moves, whole: every stage with every move.

use ionet_domain::order::{Move, Stage, after};

#[test]
fn every_stage_and_move() {
    use Move as M;
    use Stage as S;
    let stages = [
        S::Accepted,
        S::Funded,
        S::Placed,
        S::Starting,
        S::Running,
        S::Paused,
        S::Closing,
        S::Settled,
        S::Paid,
    ];
    let moves = [
        M::Fund,
        M::Place,
        M::Start,
        M::Ready,
        M::Meter,
        M::Extend,
        M::Replace,
        M::Egress,
        M::Expose,
        M::Share,
        M::Grow,
        M::Shrink,
        M::Exchange,
        M::Pause,
        M::Resume,
        M::PutOff,
        M::Change,
        M::Close,
        M::Settle,
        M::Pay,
    ];
    // A row a stage, a letter a move in the order above; the letter is the stage after, '.' is refused.
    let expected = [
        ("accepted", "F......AAA......AC.."),
        ("funded", ".P..F..FFF.....WFC.."),
        ("placed", "..S.P.PPPP......PC.."),
        ("starting", "...RS.SSSS......SC.."),
        ("running", "....RRRRRRRRRW..RC.."),
        ("paused", "....WW.WWW....F.WC.."),
        ("closing", "....C.............s."),
        ("settled", "...................p"),
        ("paid", "...................."),
    ];
    let letter = |stage: Option<Stage>| match stage {
        None => '.',
        Some(S::Accepted) => 'A',
        Some(S::Funded) => 'F',
        Some(S::Placed) => 'P',
        Some(S::Starting) => 'S',
        Some(S::Running) => 'R',
        Some(S::Paused) => 'W',
        Some(S::Closing) => 'C',
        Some(S::Settled) => 's',
        Some(S::Paid) => 'p',
    };
    for (stage, (name, row)) in stages.into_iter().zip(expected) {
        let actual: String = moves.iter().map(|wanted| letter(after(stage, *wanted))).collect();
        assert_eq!((stage.to_string().as_str(), actual.as_str()), (name, row));
    }
}
