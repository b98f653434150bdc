use super::*;
use crate::answer::OpResult;
use crate::limit::units;
use crate::packed::{Op, ops};
use crate::v1::failure::Reason;
use crate::v1::{Code, FrameReply};
use tokio::sync::oneshot;

const TIMEOUT: Duration = Duration::from_secs(5);

fn lane_and_pipe(small_frames_max: usize) -> (Arc<Lane>, Arc<Pipe>) {
    lane_of(small_frames_max, None)
}

fn lane_of(small_frames_max: usize, identity: Option<Identity>) -> (Arc<Lane>, Arc<Pipe>) {
    let options = LaneOptions { frame_ops_max: 4, small_frames_max, identity };
    let lane = Arc::new(Lane::new(1, LaneKind::Write, options));
    let pipe = Arc::new(Pipe::new("n1:9332".into()));
    lane.set_route(pipe.clone());
    (lane, pipe)
}

fn put(lane: &Lane, timeout: Duration) -> (bool, oneshot::Receiver<Result<OpResult, Error>>) {
    let (caller, answer) = oneshot::channel();
    let op = Op::new(Kind::Put, b"k", b"v");
    let bytes = op.packed_len();
    let size = Size { ops: 1, bytes, units: units(bytes) };
    let told = lane.push(Kind::Put, Waiter::Call(caller), size, timeout, |out| op.pack(out));
    (told.is_some(), answer)
}

fn cut(lane: &Arc<Lane>, pipe: &Arc<Pipe>) -> Option<Frame> {
    match lane.cut(pipe, Instant::now()) {
        Cut::Frame(frame, _) => Some(frame),
        _ => None,
    }
}

fn counts(lane: &Arc<Lane>, pipe: &Arc<Pipe>) -> Vec<u32> {
    std::iter::from_fn(|| cut(lane, pipe)).map(|frame| frame.count).collect()
}

#[test]
fn lane_is_queued_once_however_much_comes() {
    let (lane, pipe) = lane_and_pipe(1);
    let told: Vec<bool> = (0..10).map(|_| put(&lane, TIMEOUT).0).collect();
    assert_eq!(told.iter().filter(|told| **told).count(), 1);
    assert_eq!(counts(&lane, &pipe), [4, 4, 2]);
}

#[test]
fn next_small_frame_fills_while_one_is_unanswered() {
    let (lane, pipe) = lane_and_pipe(1);
    put(&lane, TIMEOUT).1.close();
    let first = cut(&lane, &pipe).unwrap();
    assert!(first.is_small);
    assert!(!put(&lane, TIMEOUT).0);
    assert!(!put(&lane, TIMEOUT).0);
    assert!(cut(&lane, &pipe).is_none());
    assert!(lane.settle(first.is_small, None).is_some(), "the answer lets the next one go");
    assert_eq!(counts(&lane, &pipe), [2]);
}

#[test]
fn full_frames_never_wait() {
    let (lane, pipe) = lane_and_pipe(1);
    put(&lane, TIMEOUT).1.close();
    assert!(cut(&lane, &pipe).is_some());
    let told: Vec<bool> = (0..4).map(|_| put(&lane, TIMEOUT).0).collect();
    assert_eq!(told, [false, false, false, true]);
    assert_eq!(counts(&lane, &pipe), [4]);
}

#[test]
fn frames_that_come_back_go_out_again_in_their_old_order() {
    let (lane, pipe) = lane_and_pipe(4);
    let _answers: Vec<_> = (0..12).map(|_| put(&lane, TIMEOUT)).collect();
    let mut frames: Vec<Frame> = std::iter::from_fn(|| cut(&lane, &pipe)).collect();
    let third = frames.pop().unwrap();
    assert!(lane.give_back(third, Duration::ZERO).is_some());
    for frame in frames {
        assert!(lane.give_back(frame, Duration::ZERO).is_none(), "it is queued already");
    }
    let order: Vec<u64> = std::iter::from_fn(|| cut(&lane, &pipe)).map(|frame| frame.place).collect();
    assert_eq!(order, [0, 1, 2]);
}

#[test]
fn paused_lane_sends_nothing_until_time_has_passed() {
    let (lane, pipe) = lane_and_pipe(4);
    let _first = put(&lane, TIMEOUT);
    let frame = cut(&lane, &pipe).unwrap();
    assert!(lane.give_back(frame, Duration::from_secs(1)).is_none());
    assert!(!put(&lane, TIMEOUT).0);
    assert!(cut(&lane, &pipe).is_none());
    let (expired, destination) = lane.tick(Instant::now());
    assert!(expired.is_empty() && destination.is_none());
    let (_, destination) = lane.tick(Instant::now() + Duration::from_secs(2));
    assert!(destination.is_some());
    assert_eq!(counts(&lane, &pipe), [1, 1]);
}

#[test]
fn operations_with_other_deadlines_do_not_share_a_frame() {
    let (lane, pipe) = lane_and_pipe(4);
    let _answers = [put(&lane, TIMEOUT), put(&lane, TIMEOUT / 2), put(&lane, TIMEOUT / 2)];
    assert_eq!(counts(&lane, &pipe), [1, 2]);
}

#[test]
fn unsent_operations_expire_definitely() {
    let (lane, _pipe) = lane_and_pipe(4);
    let (_, mut answer) = put(&lane, TIMEOUT);
    let (mut expired, _) = lane.tick(Instant::now() + TIMEOUT * 2);
    let frame = expired.pop().unwrap();
    let error = frame.expired_unsent();
    frame.fail(&error);
    assert!(answer.try_recv().unwrap().unwrap_err().is_definite());
}

#[test]
fn lane_that_moved_is_sent_elsewhere() {
    let (lane, old) = lane_and_pipe(4);
    let _answer = put(&lane, TIMEOUT);
    let new = Arc::new(Pipe::new("n2:9332".into()));
    lane.set_route(new.clone());
    lane.leave(&old);
    assert!(matches!(lane.cut(&old, Instant::now()), Cut::Elsewhere(Some(to)) if Arc::ptr_eq(&to, &new)));
    assert_eq!(counts(&lane, &new), [1]);
}

#[test]
fn short_answer_fails_only_those_without_a_result() {
    let (lane, pipe) = lane_and_pipe(4);
    let (mut first, mut second) = (put(&lane, TIMEOUT).1, put(&lane, TIMEOUT).1);
    let reply = FrameReply { results: vec![0].into(), index: 7, ..FrameReply::default() };
    cut(&lane, &pipe).unwrap().answer(LaneKind::Write, &reply);
    let result = first.try_recv().unwrap().unwrap();
    assert_eq!((result.index, result.code()), (7, Code::Success));
    assert!(!second.try_recv().unwrap().unwrap_err().is_definite());
}

fn scope(frame: &Frame) -> Scope {
    let bytes = frame.ops();
    assert_eq!(ops(&bytes).count(), frame.count as usize + 1);
    Scope::read(&ops(&bytes).next().unwrap().unwrap()).unwrap()
}

#[test]
fn frames_are_numbered_as_they_go_out_and_keep_their_number() {
    let (lane, pipe) = lane_of(4, Some(Identity { client_id: [7; 16], is_shared: false }));
    let _answers: Vec<_> = (0..6).map(|_| put(&lane, TIMEOUT)).collect();
    let first = cut(&lane, &pipe).unwrap();
    let wanted =
        Scope { client_id: [7; 16], sequence: 1, acknowledged_below: 1, operations: 4, is_retry: false };
    assert_eq!(scope(&first), wanted);
    let mut second = cut(&lane, &pipe).unwrap();
    assert_eq!(scope(&second), Scope { sequence: 2, operations: 2, ..wanted });
    lane.settle(false, first.sequence);
    second.note(Error::did_not_happen(Reason::NotLeader, "not leader"));
    lane.give_back(second, Duration::ZERO);
    let mut second = cut(&lane, &pipe).unwrap();
    assert_eq!(scope(&second), Scope { sequence: 2, operations: 2, ..wanted }, "the very same frame");
    second.note(Error::outcome_unknown(Reason::Timeout, "late"));
    lane.give_back(second, Duration::ZERO);
    let mut second = cut(&lane, &pipe).unwrap();
    let retry = Scope { sequence: 2, acknowledged_below: 2, operations: 2, is_retry: true, ..wanted };
    assert_eq!(scope(&second), retry);
    let sequence = second.unnumber().unwrap();
    lane.refuse_number(sequence);
    lane.give_back(second, Duration::ZERO);
    assert_eq!(scope(&cut(&lane, &pipe).unwrap()).sequence, 3);
}

#[test]
fn frame_that_may_have_happened_never_fails_definitely() {
    let (lane, pipe) = lane_of(4, Some(Identity { client_id: [7; 16], is_shared: false }));
    let (_, mut answer) = put(&lane, TIMEOUT);
    let mut frame = cut(&lane, &pipe).unwrap();
    frame.note(Error::outcome_unknown(Reason::Timeout, "late"));
    frame.note(Error::did_not_happen(Reason::NotLeader, "not leader"));
    let error = frame.expired_unsent();
    frame.fail(&error);
    let error = answer.try_recv().unwrap().unwrap_err();
    assert!(!error.is_definite() && error.reason() == Reason::Timeout, "{error}");
    assert!(error.message().contains("late") && error.message().contains("not leader"), "{error}");
}
