import copy
import json
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from outskirts.errors import OutskirtsError
from outskirts.images import Images
from outskirts.models import Classifier, check_classes, load_classifier
from outskirts.nets import small_resnet

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tiny(seed=0, **facts):
    torch.manual_seed(seed)
    facts = {"classes": list("abcde"), "size": (8, 8), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), **facts}
    return Classifier(small_resnet("resnet_tiny", len(facts["classes"])), source="resnet_tiny", **facts).eval()


def assert_same(a, b):
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.features, b.features)


def test_outputs_are_the_networks_own():
    classifier = tiny()
    outputs = classifier(IMAGES)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    torch.testing.assert_close(outputs.logits, classifier.net((IMAGES - mean) / std))
    torch.testing.assert_close(classifier.head(outputs.features), outputs.logits)
    assert (classifier.layer, classifier.feature_dim, classifier.num_classes) == ("fc", 64, 5)


def test_gradient_with_respect_to_images_is_right():
    torch.manual_seed(0)
    smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 5))
    classifier = Classifier(smooth, classes=list("abcde"), size=(6, 6), std=(0.2, 0.3, 0.25)).frozen()
    images, direction = torch.rand(2, 3, 8, 9), torch.randn(2, 3, 8, 9)  # resized and cropped on the way

    def energy(x):
        outputs = classifier(x)
        return (-outputs.logits.double().logsumexp(1) + outputs.features.double().sum(1)).sum()

    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(images), images)
    with torch.no_grad():
        numeric = (energy(images + 2e-3 * direction) - energy(images - 2e-3 * direction)) / 4e-3
    assert abs((gradient * direction).sum() - numeric) < 3e-3 * abs(numeric)
    assert not any(p.requires_grad for p in classifier.parameters())


def test_resize_is_antialiased_and_only_where_needed():
    classifier = tiny()
    large = torch.rand(1, 3, 64, 64, requires_grad=True)
    classifier(large).logits.sum().backward()
    assert (large.grad != 0).float().mean() > 0.99  # 1/16 of the pixels without antialiasing
    assert torch.equal(classifier.preprocess(IMAGES), ((IMAGES - classifier._mean) / classifier._std))


def test_wide_images_are_cropped_in_the_middle_not_squashed():
    classifier = tiny(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    wide = torch.cat([torch.zeros(1, 3, 16, 8), torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 16, 8)], dim=3)
    square = classifier.preprocess(wide[..., 8:24])
    torch.testing.assert_close(
        classifier.preprocess(wide)[..., 1:-1], square[..., 1:-1]
    )  # its edge sees the neighbours


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba_are_refused(channels):
    with pytest.raises(OutskirtsError, match=f"{channels} channels"):
        tiny()(torch.rand(2, channels, 8, 8))


def test_save_load_round_trip(tmp_path):
    classifier = tiny(interpolation="bicubic")
    classifier.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert_same(loaded(IMAGES), classifier(IMAGES))
    assert loaded.fingerprint() == classifier.fingerprint()
    for fact in ("classes", "size", "mean", "std", "layer", "interpolation", "source"):
        assert getattr(loaded, fact) == getattr(classifier, fact)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classifier.json", "model.safetensors"]
    assert load_classifier(tmp_path, classes=list("vwxyz")).classes == tuple("vwxyz")


def test_fingerprint_follows_weights_and_preprocessing():
    one = tiny().fingerprint()
    assert tiny().fingerprint() == one
    assert tiny(classes=list("vwxyz")).fingerprint() == one  # names do not change outputs
    others = [tiny(seed=1), tiny(mean=(0.41, 0.5, 0.6)), tiny(size=(9, 9)), tiny(interpolation="bicubic")]
    changed = tiny()
    with torch.no_grad():
        changed.net.fc.bias[0] += 1e-6
    statistics = tiny()
    statistics.train()(IMAGES)  # BatchNorm's buffers count as well
    assert len({one, *(c.fingerprint() for c in [*others, changed, statistics])}) == 7


def test_a_copy_captures_its_own_features():
    classifier = tiny()
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        twin.net.stem[0].weight.mul_(2)
    kept = classifier(IMAGES)
    assert not torch.equal(twin(IMAGES).features, kept.features)
    assert_same(classifier(IMAGES), kept)


class TwoHeads(nn.Module):
    """An auxiliary head called after the real one; features [B, 12]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(inplace=True))
        self.real, self.auxiliary = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x):
        z = self.body(x)
        logits = self.real(z)
        self.auxiliary(z)
        return logits


def test_penultimate_layer_is_on_the_path_to_the_logits():
    classifier = Classifier(TwoHeads(), classes=list("abcde"), size=(8, 8))
    assert (classifier.layer, classifier.feature_dim) == ("real", 12)
    assert Classifier(TwoHeads(), classes=list("abcde"), size=(8, 8), layer="body.1").feature_dim == 192


def test_convolutional_head_reads_pooled_features():
    net = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = Classifier(net, classes=list("abcde"), size=None)
    assert (classifier.layer, classifier(IMAGES).features.shape) == ("1", (4, 7))


def test_bad_layers_and_classes_are_one_line():
    with pytest.raises(OutskirtsError, match="did you mean 'real'"):
        Classifier(TwoHeads(), classes=list("abcde"), size=(8, 8), layer="reel")
    with pytest.raises(OutskirtsError, match="4 classes given"):
        Classifier(TwoHeads(), classes=list("abcd"), size=(8, 8))
    with pytest.raises(OutskirtsError, match="give its size"):
        Classifier(TwoHeads(), classes=list("abcde"), size=(9, 9))
    with pytest.raises(OutskirtsError, match="no penultimate layer"):
        Classifier(nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), classes=list("abcde"), size=(8, 8))


def test_class_count_of_the_data_must_match():
    images = Images("birds", ["x", "y", "z"], torch.tensor([0, 1, 2]), torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(OutskirtsError, match="birds has 3 classes and the classifier 5"):
        check_classes(tiny(), images)


def build_two_heads():
    torch.manual_seed(0)
    return TwoHeads()


def test_a_network_of_ones_own_is_saved_with_the_function_that_builds_it(tmp_path, monkeypatch):
    net = TwoHeads()
    with pytest.raises(OutskirtsError, match="source='python:"):
        Classifier(net, classes=list("abcde"), size=(8, 8)).save(tmp_path)
    (tmp_path / "my_nets.py").write_text(f"from {__name__} import build_two_heads as make\n")
    monkeypatch.syspath_prepend(tmp_path)
    classifier = Classifier(net, classes=list("abcde"), size=(8, 8), source="python:my_nets:make").eval()
    classifier.save(tmp_path / "saved")
    assert_same(load_classifier(tmp_path / "saved")(IMAGES), classifier(IMAGES))


def test_folders_that_are_no_classifier(tmp_path):
    with pytest.raises(OutskirtsError, match="not a saved classifier"):
        load_classifier(tmp_path)
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(OutskirtsError, match="cannot be read"):
        load_classifier(tmp_path)
    tiny().save(tmp_path)
    config = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps({**config, "classes": ["a"]}))
    with pytest.raises(OutskirtsError, match="cannot be read"):
        load_classifier(tmp_path)


def test_the_feature_layer_can_be_named_in_the_name(tmp_path):
    found = load_classifier("timm:test_resnet?pretrained=false&layer=layer4")
    assert found.layer == "layer4"
    assert found.feature_dim != load_classifier("timm:test_resnet?pretrained=false").feature_dim
    assert load_classifier("timm:test_resnet?pretrained=false&layer=layer4", layer="fc").layer == "fc"
    found.save(tmp_path)
    assert load_classifier(tmp_path).layer == "layer4"


class Payload:
    def __reduce__(self):
        return (print, ("run",))


def test_weights_files(tmp_path, capsys):
    classifier = tiny()
    state = classifier.net.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")

    def load(arch, file):
        options = f"weights={tmp_path / file}&mean=0.4,0.5,0.6&std=0.2,0.3,0.25"
        return load_classifier(f"{arch}?{options}", classes=list("abcde"))

    for file in ("w.safetensors", "w.pt"):
        assert_same(load("resnet_tiny", file)(IMAGES), classifier(IMAGES))
    with pytest.raises(OutskirtsError, match="does not fit"):
        load("resnet_small", "w.pt")
    torch.save(Payload(), tmp_path / "evil.pt")
    torch.save(classifier.net, tmp_path / "whole.pt")
    for file in ("evil.pt", "whole.pt"):
        with pytest.raises(OutskirtsError, match="can run code"):
            load("resnet_tiny", file)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Payload()}, protocol=4))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(OutskirtsError, match="can run code"):
            load("resnet_tiny", "plain.pt")
    assert not told  # one line is enough
    assert "run" not in capsys.readouterr().out
    (tmp_path / "words.pt").write_text("hello world")
    with pytest.raises(OutskirtsError, match="not a plain torch state dict"):
        load("resnet_tiny", "words.pt")
    with pytest.raises(OutskirtsError, match="no weights file"):
        load("resnet_tiny", "nowhere.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no classifier 'nowhere'"),
        ("resnet_tini?weights=x", "did you mean 'resnet_tiny'"),
        ("resnet_tiny", "ships without weights"),
        ("timm:resnet19", "timm has no model 'resnet19', did you mean"),
        ("torchvision:resnet19", "torchvision has no classifier 'resnet19', did you mean"),
        ("timm:test_resnet?pretrained=false&mean=1,2", "mean=1,2 is not three numbers"),
        ("timm:resnet18?pretraind=false", "unknown option 'pretraind'"),
        ("timm:test_resnet?pretrained=false&layer=fcc", "no layer 'fcc', did you mean 'fc'"),
        ("timm:test_resnet?pretrained=false&layer=", "layer is empty in"),
    ],
)
def test_unknown_names_are_one_line(name, message):
    with pytest.raises(OutskirtsError, match=message) as error:
        load_classifier(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "dim", "layer"),
    [
        ("timm:test_resnet", 96, "fc"),
        ("timm:test_vit", 64, "head"),
        ("timm:test_efficientnet", 256, "classifier"),
        ("torchvision:squeezenet1_1", 512, "classifier.1"),
        ("torchvision:mobilenet_v3_small", 1024, "classifier.3"),
    ],
)
def test_architectures_of_other_libraries_offline(name, dim, layer, tmp_path):
    classifier = load_classifier(f"{name}?pretrained=false", classes=["cat", "dog", "eel"]).frozen()
    images = torch.rand(2, 3, *classifier.size, requires_grad=True)
    outputs = classifier(images)
    assert (outputs.logits.shape, outputs.features.shape, classifier.layer) == ((2, 3), (2, dim), layer)
    outputs.logits.sum().backward()
    assert images.grad.abs().sum() > 0
    classifier.save(tmp_path)
    assert_same(load_classifier(tmp_path)(images), outputs)


def test_timm_and_torchvision_bring_their_preprocessing():
    timm = load_classifier("timm:test_resnet?pretrained=false")
    assert timm.size == (160, 160)
    assert timm.num_classes == 1000
    assert "goldfish" in timm.classes[1]
    torchvision = load_classifier("torchvision:squeezenet1_1?pretrained=false")
    assert (torchvision.size, torchvision.mean) == ((224, 224), (0.485, 0.456, 0.406))
    assert torchvision.classes[1] == "goldfish"


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(
        folder
    )
    return folder


def test_transformers(hub_folder, tmp_path):
    from transformers import ViTForImageClassification

    classifier = load_classifier(f"hf:{hub_folder}")
    assert (classifier.classes, classifier.size) == (("cat", "dog", "eel"), (16, 16))
    assert (classifier.layer, classifier.feature_dim) == ("classifier", 16)
    images = torch.rand(2, 3, 16, 16)
    net = ViTForImageClassification.from_pretrained(hub_folder).eval()
    torch.testing.assert_close(classifier(images).logits, net((images - 0.1) / 0.2).logits)
    classifier.save(tmp_path)
    assert_same(load_classifier(tmp_path)(images), classifier(images))
    random = load_classifier(f"hf:{hub_folder}?pretrained=false", classes=["ant", "bee"])
    assert random.num_classes == 2


def test_class_count_of_a_pretrained_network_must_match(hub_folder):
    with pytest.raises(OutskirtsError, match=r"2 classes given, but hf:.* has 3"):
        load_classifier(f"hf:{hub_folder}", classes=["ant", "bee"])


def test_a_failed_download_is_one_line(tmp_path):
    with pytest.raises(OutskirtsError, match=r"could not load hf:.*offline") as error:
        load_classifier(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_network_in_two_classifiers_can_be_copied_after_a_pass_with_gradient():
    net = small_resnet("resnet_tiny", 3)
    first, second = (Classifier(net, classes="abc", size=(8, 8)) for _ in range(2))
    images = torch.rand(2, 3, 8, 8)
    second(images).logits.sum()
    torch.testing.assert_close(copy.deepcopy(first).eval()(images).logits, first.eval()(images).logits)
