package dev.penumbra.data;

import java.util.Optional;

/** Text to tokens and back. */
public interface Tokenizer extends AutoCloseable {

    /** The tokens of a text, without start or end token. */
    int[] encode(String text);

    /** The text of tokens; special tokens are left out. */
    String decode(int... ids);

    /** The start token, placed once before a sample. */
    int bosId();

    /** The end token, placed once after what is to be learned. */
    int eosId();

    int padId();

    /** How the model's makers write conversations, where they say. */
    default Optional<ChatTemplate> chatTemplate() {
        return Optional.empty();
    }

    @Override
    void close();
}
