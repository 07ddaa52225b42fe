"""`QConfigMapping`: which layer has which `QConfig`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch.nn import functional

import octavo.quantization.qconfig as core
from octavo.compat.quantization.backends import DEFAULT
from octavo.compat.quantization.qconfig import (
    common_target,
    get_default_qat_qconfig,
    get_default_qconfig,
    native,
)
from octavo.errors import PlanError


class QConfigMapping:
    """Rules from layers to qconfigs; ``None`` keeps float. What is more specific decides: module
    name, then regular expression, then object type, then global.

    Attributes:
        global_qconfig: of all that no rule matches.
        object_type_qconfigs, module_name_regex_qconfigs, module_name_qconfigs: rules.

    Example:
        >>> QConfigMapping().set_global(None).set_module_name("fc", None).module_name_qconfigs
        {'fc': None}
    """

    def __init__(self) -> None:
        self.global_qconfig: Any = None
        self.object_type_qconfigs: dict[Any, Any] = {}
        self.module_name_regex_qconfigs: dict[str, Any] = {}
        self.module_name_qconfigs: dict[str, Any] = {}

    @property
    def _rules(self) -> dict[str, dict[Any, Any]]:
        """Kind of rule -> what it is about -> qconfig."""
        return {
            "object_type": self.object_type_qconfigs,
            "module_name_regex": self.module_name_regex_qconfigs,
            "module_name": self.module_name_qconfigs,
        }

    def set_global(self, global_qconfig: Any) -> QConfigMapping:
        """The qconfig of all that no other rule matches."""
        self.global_qconfig = global_qconfig
        return self

    def set_object_type(self, object_type: Any, qconfig: Any) -> QConfigMapping:
        """A rule for a module class, a function, or the name of a method."""
        self.object_type_qconfigs[object_type] = qconfig
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: Any) -> QConfigMapping:
        """A rule for modules whose path matches."""
        self.module_name_regex_qconfigs[module_name_regex] = qconfig
        return self

    def set_module_name(self, module_name: str, qconfig: Any) -> QConfigMapping:
        """A rule for a module and all inside it."""
        self.module_name_qconfigs[module_name] = qconfig
        return self

    def set_module_name_object_type_order(self, *args: Any) -> QConfigMapping:
        """Not shared.

        Raises:
            PlanError: always; it names the other way.
        """
        raise PlanError(
            "Octavo has no rule for the n-th operator of a type: name the module with "
            "set_module_name, or the operator by its name in print(octavo.plan(graph))"
        )

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> QConfigMapping:
        """The mapping of a ``qconfig_dict``.

        Raises:
            PlanError: it has a key that a mapping does not have.
        """
        mapping = cls()
        for key, value in qconfig_dict.items():
            if key in ("", "global"):
                mapping.set_global(value)
            elif key in _SETTERS:
                for rule in value:
                    getattr(mapping, f"set_{key}")(*rule)
            else:
                raise PlanError(f"a qconfig_dict has no key {key!r}; it has '' and {[*_SETTERS]}")
        return mapping

    def to_dict(self) -> dict[str, Any]:
        """The ``qconfig_dict`` of the mapping."""
        rules = {kind: list(rules.items()) for kind, rules in self._rules.items()}
        return {"": self.global_qconfig, **rules}

    def qconfigs(self) -> Iterable[Any]:
        """All that it names."""
        yield self.global_qconfig
        for rules in self._rules.values():
            yield from rules.values()

    def native(self, training: bool = False) -> core.QConfigMapping:
        """The rules as Octavo has them.

        Raises:
            PlanError: Octavo does not share the meaning of one.
        """
        target = common_target(self.qconfigs())

        def own(qconfig: Any) -> core.QConfig | None:
            return native(qconfig, target, training)

        mapping = core.QConfigMapping().set_global(own(self.global_qconfig))
        for kind, rules in self._rules.items():
            set_rule = getattr(mapping, f"set_{kind}")
            for what, qconfig in rules.items():
                set_rule(_object_type(what), own(qconfig))
        return mapping

    def __repr__(self) -> str:
        lines = [f" {key or 'global'}: {value}" for key, value in self.to_dict().items()]
        return "\n".join(["QConfigMapping (", *lines, ")"])


_SETTERS = ("object_type", "module_name_regex", "module_name", "module_name_object_type_order")


def mapping_of(given: Any) -> QConfigMapping:
    """A mapping from a mapping, a ``qconfig_dict``, or one qconfig for all layers."""
    if isinstance(given, QConfigMapping):
        return given
    if isinstance(given, Mapping):
        return QConfigMapping.from_dict(given)
    return QConfigMapping().set_global(given)


def get_default_qconfig_mapping(backend: str = DEFAULT, version: int = 0) -> QConfigMapping:
    """The backend's default for static quantization, for all layers."""
    return QConfigMapping().set_global(get_default_qconfig(backend, version))


def get_default_qat_qconfig_mapping(backend: str = DEFAULT, version: int = 1) -> QConfigMapping:
    """The backend's default for training, for all layers."""
    return QConfigMapping().set_global(get_default_qat_qconfig(backend, version))


def get_default_qconfig_dict(backend: str = DEFAULT, version: int = 0) -> dict[str, Any]:
    """`get_default_qconfig_mapping` as a dict."""
    return get_default_qconfig_mapping(backend, version).to_dict()


def get_default_qat_qconfig_dict(backend: str = DEFAULT, version: int = 1) -> dict[str, Any]:
    """`get_default_qat_qconfig_mapping` as a dict."""
    return get_default_qat_qconfig_mapping(backend, version).to_dict()


def _object_type(kind: Any) -> Any:
    """Some functions of ``torch.nn.functional`` do not know their own names."""
    if isinstance(kind, str | type):
        return kind
    names = (name for name, value in vars(functional).items() if value is kind)
    return next(names, getattr(kind, "__name__", kind))
