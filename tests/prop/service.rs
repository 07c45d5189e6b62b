//! The contract of the service, independent of the transformation: the readers of the working
//! memory and the serving path rely on each property.

use proptest::prelude::*;
use uppercased::service::transform;

fn message() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=300)
}

fn transformed(mut bytes: Vec<u8>) -> Vec<u8> {
    transform(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn transform_is_idempotent_and_pure(bytes in message()) {
        let once = transformed(bytes.clone());
        prop_assert_eq!(&transformed(bytes), &once);
        prop_assert_eq!(transformed(once.clone()), once);
    }

    #[test]
    fn transform_may_run_again_over_half_done_bytes(
        bytes in message(),
        done in prop::collection::vec(any::<bool>(), 300),
    ) {
        let whole = transformed(bytes.clone());
        // A crash may leave any subset of the bytes transformed: wide paths do not proceed from
        // first to last.
        let half: Vec<u8> = bytes
            .iter()
            .zip(&whole)
            .zip(done)
            .map(|((before, after), done)| if done { *after } else { *before })
            .collect();
        prop_assert_eq!(transformed(half), whole);
    }

    #[test]
    fn transform_ignores_message_boundaries(
        bytes in message(),
        cut in any::<prop::sample::Index>(),
    ) {
        let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
        let parts = [transformed(head.to_vec()), transformed(tail.to_vec())].concat();
        prop_assert_eq!(parts, transformed(bytes));
    }
}
