// How much of each layer's MLP a text leaves unused: the share of ReLU activations that are zero.
//
//   ./penumbra jshell java/examples/activation.jsh [MODEL_FOLDER]
//
// Without a folder it reads the bundled checkpoint, which it puts into the system's folder for temporary files.

Path bundled = Path.of(System.getProperty("java.io.tmpdir"), "penumbra-demo-model");
Path folder = args.length > 0 ? Path.of(args[0]) : DemoModel.extract(bundled);

String text = """
        The harbour was quiet when the first boats came back. A man on the quay counted them, wrote the number into
        a small book and went home to light the stove. In the afternoon the wind turned, and the market closed early.""";

try (var tokenizer = HfTokenizer.load(folder);
        var penumbra = Penumbra.load(folder);
        var arena = Arena.ofShared()) {
    int[] ids = IntStream.concat(IntStream.of(tokenizer.bosId()), IntStream.of(tokenizer.encode(text))).toArray();
    var sample = new Sample(ids, new boolean[ids.length]);
    ModelPass pass = penumbra.model().openPass(arena, null, new PassShape(ids.length, ids.length, false, true));
    pass.forward(Batch.of(sample), null);
    System.out.printf("%s, %d tokens%n", penumbra.model().backend().describe(), ids.length);
    for (ReluMask mask : pass.reluMasks()) {
        System.out.printf("layer %2d: %.1f%% of its activations are zero%n", mask.layer(),
                100 * mask.zeroShare(penumbra.model().backend()));
    }
}
