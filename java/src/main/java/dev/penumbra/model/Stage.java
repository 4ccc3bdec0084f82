package dev.penumbra.model;

/** What a pass does one after the other. Memory of what lives within one stage is another's in the next. */
enum Stage {
    EMBEDDING, ATTENTION, MLP, HEAD, MLP_BACKWARD, ATTENTION_BACKWARD
}
