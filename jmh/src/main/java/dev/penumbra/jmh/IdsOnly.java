package dev.penumbra.jmh;

import dev.penumbra.data.Tokenizer;

/** The tokenizer of files that hold tokens already, as numbers: refuses text. */
enum IdsOnly implements Tokenizer {
    INSTANCE;

    @Override
    public int[] encode(String text) {
        throw new UnsupportedOperationException(
                "expected lines of tokens, {\"context\": [ids], \"completion\": [ids]}; found text");
    }

    @Override
    public String decode(int... ids) {
        throw new UnsupportedOperationException("expected tokens to stay numbers: there is no vocabulary here");
    }

    @Override
    public int bosId() {
        return 2;
    }

    @Override
    public int eosId() {
        return 2;
    }

    @Override
    public int padId() {
        return 1;
    }

    @Override
    public void close() {
    }
}
