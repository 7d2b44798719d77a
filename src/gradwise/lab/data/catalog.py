"""The built-in image sets: what is known of them whatever form their files have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSet:
    """A published image set.

    Attributes:
        name: the name a user gives.
        shape: `(C, H, W)` of an image.
        num_classes: number of classes.
        crop_padding: pixels of zeros for random crops in the recipes of the field.
        flip: whether mirrored images keep their class.
        class_names: the published names, in the order of the labels.
        label_column: the column of the labels in the Parquet form. One name only: CIFAR-10 has
            `label` where CIFAR-100 has `fine_label`, which tells the two apart.
        folders: folders below the user's that usually hold the files, most telling first.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    crop_padding: int
    flip: bool
    class_names: tuple[str, ...]
    label_column: str
    folders: tuple[str, ...]


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Crops: 4 pixels for CIFAR as in He et al. 2016, and for Fashion-MNIST, whose garments fill the
# frame likewise, as in Zhong et al. 2020 (random erasing). The digits of MNIST sit in a 20x20
# box with 4 pixels of margin: 2 pixels move them without cutting them. Mirrored digits are no
# digits.
IMAGE_SETS: dict[str, ImageSet] = {
    known.name: known
    for known in (
        ImageSet(
            name="cifar10",
            shape=(3, 32, 32),
            num_classes=10,
            crop_padding=4,
            flip=True,
            class_names=tuple(_CIFAR10.split()),
            label_column="label",
            folders=("cifar10", "cifar-10", "cifar-10-batches-py", "cifar-10-batches-bin"),
        ),
        ImageSet(
            name="cifar100",
            shape=(3, 32, 32),
            num_classes=100,
            crop_padding=4,
            flip=True,
            class_names=tuple(_CIFAR100.split()),
            label_column="fine_label",
            folders=("cifar100", "cifar-100", "cifar-100-python", "cifar-100-binary"),
        ),
        ImageSet(
            name="fashion-mnist",
            shape=(1, 28, 28),
            num_classes=10,
            crop_padding=4,
            flip=True,
            class_names=_FASHION,
            label_column="label",
            folders=("fashion-mnist", "fashion_mnist", "FashionMNIST"),
        ),
        ImageSet(
            name="mnist",
            shape=(1, 28, 28),
            num_classes=10,
            crop_padding=2,
            flip=False,
            class_names=tuple("0123456789"),
            label_column="label",
            folders=("mnist", "MNIST"),
        ),
    )
}
