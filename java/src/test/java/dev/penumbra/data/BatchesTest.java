package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.TreeMap;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;

class BatchesTest {

    private static final int PADDING = 0;

    /** Samples whose tokens are all their own number, counted from 1, so that they are recognised in a batch. */
    private static Dataset numbered(int count, int longest, long seed) {
        Random random = new Random(seed);
        List<Sample> samples = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            int[] ids = new int[1 + random.nextInt(longest)];
            boolean[] supervised = new boolean[ids.length];
            for (int j = 0; j < ids.length; j++) {
                ids[j] = i + 1;
                supervised[j] = j > 0 && (i == 0 || random.nextBoolean());
            }
            samples.add(new Sample(ids, supervised));
        }
        samples.add(new Sample(new int[]{count + 1, count + 1}, new boolean[]{false, true}));
        return Dataset.of(samples);
    }

    @Property(tries = 60)
    void everySampleWithTargetsComesOnceAnEpoch(
            @ForAll @IntRange(min = 1, max = 300) int count, @ForAll @IntRange(min = 2, max = 40) int seqLen,
            @ForAll boolean pack, @ForAll long seed) {
        Dataset dataset = numbered(count, seqLen, seed);
        Batches batches = new Batches(dataset, 3, seqLen, pack, true, seed);
        TreeMap<Integer, Integer> tokens = new TreeMap<>();
        TreeMap<Integer, Integer> targets = new TreeMap<>();
        int realTokens = 0;
        while (batches.epoch() == 0 && batches.index() < batches.batchesPerEpoch()) {
            Batch batch = batches.next();
            assertThat(batch.tokens()).isLessThanOrEqualTo(3 * seqLen);
            assertThat(batch.cuSeqlens()[batch.samples()]).isEqualTo(batch.tokens());
            realTokens += batch.realTokens();
            for (int s = 0; s < batch.samples(); s++) {
                for (int t = batch.cuSeqlens()[s]; t < batch.cuSeqlens()[s + 1]; t++) {
                    assertThat(batch.positions()[t]).isEqualTo(t - batch.cuSeqlens()[s]);
                    if (batch.ids()[t] != PADDING) {
                        assertThat(batch.ids()[t]).isEqualTo(batch.ids()[batch.cuSeqlens()[s]]);
                        tokens.merge(batch.ids()[t], 1, Integer::sum);
                    }
                }
            }
            assertThat(batch.rows()).isNotEmpty();
            for (int i = 0; i < batch.rows().length; i++) {
                assertThat(batch.ids()[batch.rows()[i]]).isEqualTo(batch.targets()[i]);
                targets.merge(batch.targets()[i], 1, Integer::sum);
            }
        }
        for (int i = 0; i < dataset.size(); i++) {
            Sample sample = dataset.get(i);
            int whole = sample.supervisedCount() > 0 ? sample.length() : 0;
            int laid = pack ? Batches.packedLength(sample, seqLen) : whole;
            assertThat(tokens.getOrDefault(i + 1, 0)).isEqualTo(Math.min(laid, whole));
            assertThat(targets.getOrDefault(i + 1, 0)).isEqualTo(sample.supervisedCount());
            realTokens -= whole;
        }
        assertThat(realTokens).isZero();
    }

    @Property(tries = 1)
    void packedSamplesEndWithTheirLastPrediction() {
        Sample answered = new Sample(new int[]{5, 6, 7, 8, 9}, new boolean[]{false, false, true, true, false});
        Sample whole = new Sample(new int[]{1, 2, 3, 4, 5, 6, 7, 8}, new boolean[]{false, true, false, false, false, false,
                false, false});
        Dataset dataset = Dataset.of(List.of(answered, whole));
        Batch packed = new Batches(dataset, 2, 8, true, false, 0).next();
        assertThat(packed.ids()).as("one that fills its row stays whole").containsExactly(1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7);
        assertThat(packed.positions()).containsExactly(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2);
        assertThat(packed.cuSeqlens()).containsExactly(0, 8, 11);
        assertThat(packed.rows()).containsExactly(0, 9, 10);
        assertThat(packed.targets()).containsExactly(2, 7, 8);
        assertThat(packed.maxSeqlen()).isEqualTo(8);
        assertThat(packed.realTokens()).isEqualTo(13);
        assertThat(new Batches(dataset, 2, 8, false, false, 0).next().tokens()).as("padded rows").isEqualTo(16);
    }

    @Property(tries = 20)
    void aSoughtPositionGivesTheSameRest(@ForAll long seed) {
        Dataset dataset = numbered(100, 20, seed);
        Batches whole = new Batches(dataset, 2, 20, true, true, seed);
        for (int i = 0; i < whole.batchesPerEpoch() + 3; i++) {
            whole.next();
        }
        Batches resumed = new Batches(dataset, 2, 20, true, true, seed);
        resumed.seek(whole.epoch(), whole.index());
        for (int i = 0; i < 20; i++) {
            assertThat(resumed.next().ids()).isEqualTo(whole.next().ids());
        }
    }

    /** More samples than are packed together: how well they pack depends on the order that an epoch has. */
    @Property(tries = 3)
    void theBatchesOfAnEpochAreKnownBefore(@ForAll long seed) {
        Dataset dataset = numbered(6000, 90, seed);
        Batches batches = new Batches(dataset, 1, 100, true, true, seed);
        for (int epoch = 0; epoch < 4; epoch++) {
            int expected = batches.batchesIn(epoch);
            batches.seek(epoch, 0);
            assertThat(batches.batchesPerEpoch()).isEqualTo(expected);
        }
    }

    @Property(tries = 1)
    void emptyTooLongAndUnsupervisedDataAreRefused() {
        assertThatThrownBy(() -> new Batches(Dataset.of(List.of()), 1, 8, true, true, 0))
                .isInstanceOf(DataException.class);
        Dataset longer = Dataset.of(List.of(new Sample(new int[9], new boolean[9])));
        assertThatThrownBy(() -> new Batches(longer, 1, 8, true, true, 0))
                .hasMessageContaining("at most 8 tokens, found 9");
        assertThatThrownBy(() -> new Batches(longer, 1, 9, true, true, 0)).hasMessageContaining("supervised");
    }
}
