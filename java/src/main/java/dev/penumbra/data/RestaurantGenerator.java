package dev.penumbra.data;

import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Invents restaurants and describes them: a line of attributes and one or two sentences that say the same. The demo tunes on
 * these. Everything follows from the seed.
 */
public final class RestaurantGenerator {

    private static final String[] NAMES = {
            "The Amber Kettle", "Juniper Yard", "Copper Spoon", "The Quiet Heron", "Salt and Clover", "Lantern House",
            "The Tin Orchard",
            "Maple Corner", "The Wandering Fork", "Blue Thimble", "Cinder Lane", "The Paper Crane", "Fennel Gate",
            "The Round Table Top",
            "Harbour Nine", "Velvet Pear", "The Crooked Ladle", "Marigold", "Stone Basil", "The Late Swallow"
    };
    private static final String[] FOODS = {"Italian", "Japanese", "Indian", "French", "Mexican", "Turkish", "Thai",
            "English", "Korean"};
    private static final String[] PRICES = {"cheap", "moderate", "high"};
    private static final String[] RATINGS = {"1 out of 5", "3 out of 5", "5 out of 5"};
    private static final String[] AREAS = {"city centre", "riverside", "old town", "station quarter"};
    private static final String[] LANDMARKS = {"the Clock Museum", "Willow Bridge", "the Grand Theatre", "Mill Park",
            "the Fish Market"};

    private final SplittableRandom random;

    public RestaurantGenerator(long seed) {
        random = new SplittableRandom(seed);
    }

    /**
     * @param prompt the attributes, ending where the description begins
     * @param completion the description
     */
    public record Pair(String prompt, String completion) {
    }

    public List<Pair> pairs(int count) {
        List<Pair> pairs = new ArrayList<>(count);
        for (int i = 0; i < count; i++) {
            pairs.add(pair());
        }
        return pairs;
    }

    /**
     * Pairs of one side of a split: no combination of name, food and price stands on both sides, whatever the seeds.
     *
     * @param heldOut the side to evaluate on, about a tenth of all combinations, instead of the side to train on
     */
    public List<Pair> pairs(int count, boolean heldOut) {
        List<Pair> pairs = new ArrayList<>(count);
        while (pairs.size() < count) {
            Pair pair = pair();
            if (isHeldOut(pair) == heldOut) {
                pairs.add(pair);
            }
        }
        return pairs;
    }

    private static boolean isHeldOut(Pair pair) {
        String[] attributes = pair.prompt().strip().split(" \\| ");
        int hash = (attributes[0] + attributes[1] + attributes[2]).hashCode() * 0x9E3779B9;
        return (hash >>> 16) % 10 == 0;
    }

    /** Samples of prompt and completion with the completion supervised. */
    public static Dataset dataset(List<Pair> pairs, Tokenizer tokenizer) {
        List<Sample> samples = new ArrayList<>(pairs.size());
        for (Pair pair : pairs) {
            int[] prompt = tokenizer.encode(pair.prompt());
            int[] completion = tokenizer.encode(pair.completion());
            int[] ids = new int[prompt.length + completion.length + 2];
            boolean[] supervised = new boolean[ids.length];
            ids[0] = tokenizer.bosId();
            System.arraycopy(prompt, 0, ids, 1, prompt.length);
            System.arraycopy(completion, 0, ids, 1 + prompt.length, completion.length);
            ids[ids.length - 1] = tokenizer.eosId();
            for (int i = 1 + prompt.length; i < ids.length; i++) {
                supervised[i] = true;
            }
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    private Pair pair() {
        String name = pick(NAMES);
        String food = pick(FOODS);
        String price = pick(PRICES);
        String rating = random.nextBoolean() ? pick(RATINGS) : "";
        String area = random.nextInt(4) > 0 ? pick(AREAS) : "";
        String landmark = random.nextInt(3) > 0 ? pick(LANDMARKS) : "";
        String family = random.nextInt(3) == 0 ? "" : random.nextBoolean() ? "yes" : "no";

        StringBuilder prompt = new StringBuilder("name: " + name + " | food: " + food + " | price: " + price);
        add(prompt, "rating", rating);
        add(prompt, "area", area);
        add(prompt, "near", landmark);
        add(prompt, "family friendly", family);
        return new Pair(prompt + "\n", describe(name, food, price, rating, area, landmark, family));
    }

    private static void add(StringBuilder prompt, String key, String value) {
        if (!value.isEmpty()) {
            prompt.append(" | ").append(key).append(": ").append(value);
        }
    }

    private String describe(String name, String food, String price, String rating, String area, String landmark,
            String family) {
        String place = area.isEmpty() ? "" : " in the " + area;
        String near = landmark.isEmpty() ? "" : " near " + landmark;
        String cost = switch (price) {
            case "cheap" -> pick("low prices", "a small bill", "cheap plates");
            case "moderate" -> pick("fair prices", "moderate prices", "prices in the middle");
            default -> pick("high prices", "an expensive menu", "plates that cost a lot");
        };
        String first = switch (random.nextInt(4)) {
            case 0 -> name + " serves " + food + " food" + place + near + " at " + cost + ".";
            case 1 -> "If you want " + food + " food, try " + name + place + near + "; expect " + cost + ".";
            case 2 -> name + place + near + " is " + article(food) + " " + food + " restaurant with " + cost + ".";
            default -> "With " + cost + ", " + name + " cooks " + food + " dishes" + place + near + ".";
        };
        StringBuilder second = new StringBuilder();
        if (!rating.isEmpty()) {
            second.append(pick(" Guests rate it ", " Its rating is ", " Visitors give it ")).append(rating);
        }
        if (!family.isEmpty()) {
            String children = family.equals("yes")
                    ? pick("children are welcome", "it suits families")
                    : pick("it is not for children", "families should look elsewhere");
            if (second.isEmpty()) {
                second.append(' ').append(Character.toUpperCase(children.charAt(0))).append(children.substring(1));
            } else {
                second.append(", and ").append(children);
            }
        }
        return second.isEmpty() ? first : first + second + ".";
    }

    private static String article(String word) {
        return "AEIOU".indexOf(word.charAt(0)) >= 0 ? "an" : "a";
    }

    private String pick(String... options) {
        return options[random.nextInt(options.length)];
    }
}
