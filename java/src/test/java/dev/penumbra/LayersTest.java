package dev.penumbra;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static com.tngtech.archunit.library.Architectures.layeredArchitecture;
import static com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices;

import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.junit.AnalyzeClasses;
import com.tngtech.archunit.junit.ArchTest;
import com.tngtech.archunit.lang.ArchRule;
import dev.penumbra.backend.Backends;
import dev.penumbra.internal.ffi.NativeBackend;

/** The arrows between packages: cli → train → (model, lora, data, io) → backend → tensor, and natives behind one door. */
@AnalyzeClasses(packages = "dev.penumbra", importOptions = ImportOption.DoNotIncludeTests.class)
class LayersTest {

    @ArchTest
    static final ArchRule packagesPointDownwards = layeredArchitecture()
            .consideringOnlyDependenciesInLayers()
            .withOptionalLayers(true)
            .layer("cli").definedBy("dev.penumbra.cli..")
            .layer("train").definedBy("dev.penumbra.train..")
            .layer("middle").definedBy(
                    "dev.penumbra.model..", "dev.penumbra.lora..", "dev.penumbra.data..", "dev.penumbra.io..",
                    "dev.penumbra.expose..", "dev.penumbra.predict..", "dev.penumbra.sparse..")
            .layer("backend").definedBy("dev.penumbra.backend..")
            .layer("ffi").definedBy("dev.penumbra.internal.ffi")
            .layer("tensor").definedBy("dev.penumbra.tensor..")
            .whereLayer("cli").mayNotBeAccessedByAnyLayer()
            .whereLayer("train").mayOnlyBeAccessedByLayers("cli")
            .whereLayer("middle").mayOnlyBeAccessedByLayers("cli", "train")
            .whereLayer("backend").mayOnlyBeAccessedByLayers("cli", "train", "middle", "ffi")
            .whereLayer("ffi").mayOnlyBeAccessedByLayers("backend")
            .because("a package knows what lies below it, and nothing above");

    /** But for the one door to the native backend, which implements what its opener declares. */
    @ArchTest
    static final ArchRule noPackageDependsOnItselfThroughOthers = slices().matching("dev.penumbra.(*)..")
            .should().beFreeOfCycles()
            .ignoreDependency(Backends.class, NativeBackend.class);

    @ArchTest
    static final ArchRule onlyInternalKnowsGeneratedCode = noClasses()
            .that().resideOutsideOfPackage("dev.penumbra.internal..")
            .should().dependOnClassesThat()
            .resideInAnyPackage("dev.penumbra.internal.ffi.penumbra..", "dev.penumbra.internal.ffi.cuda..");

    @ArchTest
    static final ArchRule programsDoWithoutWhatTheCommandLineBrings = noClasses()
            .that().resideOutsideOfPackage("dev.penumbra.cli..")
            .should().dependOnClassesThat()
            .resideInAnyPackage("picocli..", "tools.jackson.dataformat..")
            .because("these dependencies are optional");

    @ArchTest
    static final ArchRule onlyBackendsOpensNativeOnes = noClasses()
            .that().resideOutsideOfPackage("dev.penumbra.internal.ffi..")
            .and().doNotBelongToAnyOf(Backends.class)
            .should().dependOnClassesThat().resideInAPackage("dev.penumbra.internal.ffi..");

    @ArchTest
    static final ArchRule tensorsKnowNothingElse = noClasses()
            .that().resideInAPackage("dev.penumbra.tensor..")
            .should().dependOnClassesThat().resideInAnyPackage(
                    "dev.penumbra.backend..", "dev.penumbra.internal..", "dev.penumbra.io..", "dev.penumbra.model..",
                    "dev.penumbra.lora..", "dev.penumbra.data..", "dev.penumbra.train..", "dev.penumbra.cli..");
}
