"""The article's loops as published: torchvision's transforms image by image, NCHW f32, the frozen backbone in every
epoch. Its mistakes are left in, because they do not change the speed.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from side import serve


class Images(Dataset):
    def __init__(self, task, indices):
        self.pictures = [to_pil_image(task.images[i]) for i in indices]
        self.labels = task.labels[indices].tolist()
        self.transform = transforms.Compose(
            [transforms.Resize(task.size), transforms.ToTensor(), transforms.Normalize(task.mean, task.std)]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(self.pictures[i]), self.labels[i]


def loaders(task):
    train, validation = Images(task, range(task.train)), Images(task, task.held_out())
    orders = list(task.order)

    def of_epoch(epoch):
        return DataLoader(train, batch_size=task.batch, sampler=orders[epoch].tolist(), num_workers=task.workers)

    return of_epoch, DataLoader(validation, batch_size=task.batch, num_workers=task.workers)


def loss_kd(outputs, labels, teacher, temperature, alpha):
    soft = nn.KLDivLoss()(F.log_softmax(outputs / temperature, dim=1), F.softmax(teacher / temperature, dim=1))
    return soft * (alpha * temperature**2) + F.cross_entropy(outputs, labels) * (1.0 - alpha)


def validate(task, net, validation):
    """Validates as the article does, with gradients recorded though nothing uses them."""
    net.eval()
    for images, labels in validation:
        F.cross_entropy(net(images.to(task.device)), labels.to(task.device)).item()


def student(task):
    net, (train, validation) = task.student(), loaders(task)
    # The teacher's outputs by batch number, as the article stores them.
    rows = list(task.logits().split(task.batch))

    def epoch(number):
        net.train()
        adam, sum_ = torch.optim.Adam(net.parameters(), lr=1e-3), 0.0
        for i, (images, labels) in enumerate(train(number)):
            images, labels, teacher = images.to(task.device), labels.to(task.device), rows[i].to(task.device)
            outputs = net(images)
            loss = loss_kd(outputs, labels, teacher, task.temperature, task.alpha)
            adam.zero_grad()
            loss.backward()
            adam.step()
            sum_ += loss.item() * len(labels)
        validate(task, net, validation)
        return {"loss": sum_ / task.train}

    return epoch


def teacher(task):
    """Trains one of the article's ten epochs: each costs the same."""
    net, (train, validation) = task.backbone(), loaders(task)
    width = task.tensors("head")["fc.weight"].shape[1]
    net.requires_grad_(False)
    head = nn.Linear(width, 10)
    head.load_state_dict({name.removeprefix("fc."): t for name, t in task.tensors("head").items()})
    whole = nn.Sequential(net, head).to(task.device)

    def epoch(number):
        whole.train()
        adam, sum_ = torch.optim.Adam(head.parameters(), lr=1e-3), 0.0
        for images, labels in train(number):
            loss = F.cross_entropy(whole(images.to(task.device)), labels.to(task.device))
            adam.zero_grad()
            loss.backward()
            adam.step()
            sum_ += loss.item() * len(labels)
        validate(task, whole, validation)
        return {"loss": sum_ / task.train, "epochs": 1}

    return epoch


def features(task):
    """Computes the teacher's outputs batch by batch with gradients recorded, as the article does."""
    net, (train, _) = task.backbone().eval(), loaders(task)

    def pass_(number):
        outputs = [net(images.to(task.device)).detach().cpu() for images, _ in train(number)]
        return {"loss": torch.cat(outputs).float().abs().mean().item()}

    return pass_


if __name__ == "__main__":
    serve({"student": student, "teacher": teacher, "features": features})
