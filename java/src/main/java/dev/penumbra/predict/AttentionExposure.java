package dev.penumbra.predict;

import java.util.Optional;

/** What calibration has found out about a model's attention, layer by layer and head by head. */
public interface AttentionExposure {

    int layers();

    int heads();

    /** Rows of a block. */
    int blockSize();

    /** Blocks of the longest sample that it knows of. */
    int width();

    /** [heads, width, width]: the mean part of query block i's mass that lies on key block j of its sample. */
    float[] table(int layer);

    /** What was trained to tell blocks' mass; empty where none was. */
    Optional<AttentionPredictor> predictor(int layer);

    /** [heads]: the part of the blocks on and below the diagonal that covers this part of their mass in most samples. */
    double[] keptAt(int layer, double coverage);

    /** Tells one calibration from another: its file's hash. */
    String identity();
}
