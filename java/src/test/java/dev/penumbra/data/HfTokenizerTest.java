package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import tools.jackson.databind.json.JsonMapper;

class HfTokenizerTest {

    @TempDir
    Path folder;

    /** OPT's four specials, a token for each of the 256 bytes, and two merges. */
    private void writeTwoFiles() throws IOException {
        Map<String, Integer> vocab = new LinkedHashMap<>();
        for (String special : new String[]{"<s>", "<pad>", "</s>", "<unk>"}) {
            vocab.put(special, vocab.size());
        }
        int shifted = 256;
        for (int b = 0; b < 256; b++) {
            boolean printable = b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE;
            vocab.put(Character.toString(printable ? b : shifted++), vocab.size());
        }
        vocab.put("\u0120t", vocab.size());
        vocab.put("he", vocab.size());
        Files.writeString(folder.resolve("vocab.json"), new JsonMapper().writeValueAsString(vocab));
        Files.writeString(folder.resolve("merges.txt"), "#version: 0.2\n\u0120 t\nh e\n");
    }

    @Test
    void twoFilesGiveAByteLevelTokenizerThatKeepsEveryCharacter() throws IOException {
        writeTwoFiles();
        try (HfTokenizer tokenizer = HfTokenizer.load(folder)) {
            for (String text : new String[]{"the the", "  two  spaces ", "a\nb\r\n\tc",
                    "gr\u00fc\u00df \u4f60\u597d \ud83d\ude00", "", "# he"}) {
                assertThat(tokenizer.decode(tokenizer.encode(text))).isEqualTo(text);
            }
            assertThat(tokenizer.encode(" the")).containsExactly(260, 261);
            assertThat(tokenizer.bosId()).isEqualTo(2);
        }
    }

    @Test
    void specialTokensAreNeitherAddedNorDecoded() throws IOException {
        writeTwoFiles();
        try (HfTokenizer tokenizer = HfTokenizer.load(folder)) {
            assertThat(tokenizer.encode("he")).containsExactly(261);
            assertThat(tokenizer.encode("</s>he")).containsExactly(2, 261);
            assertThat(tokenizer.decode(2, 261, 1)).isEqualTo("he");
        }
    }

    @Test
    void aFolderWithoutTokenizerIsNamed() {
        assertThatThrownBy(() -> HfTokenizer.load(folder)).hasMessageContaining(folder.toString())
                .hasMessageContaining("vocab.json");
    }
}
