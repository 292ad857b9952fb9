"""The cache as people think of it: VMs with their parts together, names, nodes with their VMs.

Owns:    indexes over the cache, name resolution, and one feed per kind for watches.
Never:   writes.
Threads: one event loop.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from controller import errors
from controller.model.records import (
    Assignment, EventRecord, ImageRecord, MigrationRecord, NodeRecord, Tombstone, VmRecord, VmStatus,
)
from controller.store import keys
from controller.store.cache import Cache, Change, Entry
from controller.store.feed import Feed

PREFIX_LENGTH = 4                  # of a uid, at least
VM_PARTS = (keys.VM_SPEC, keys.VM_STATUS, keys.VM_ASSIGN, keys.VM_MIGRATION)


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM whole. Entries carry the revisions that a commit compares."""

    uid: str
    spec_entry: Entry
    status_entry: Entry | None
    assign_entry: Entry | None
    pointer_entry: Entry | None                 # to a migration under way
    migration_entry: Entry | None               # that migration

    @property
    def record(self) -> VmRecord:
        return self.spec_entry.record

    @property
    def status(self) -> VmStatus:
        return self.status_entry.record if self.status_entry else VmStatus()

    @property
    def assignment(self) -> Assignment | None:
        return self.assign_entry.record if self.assign_entry else None

    @property
    def node(self) -> str:
        return self.assign_entry.record.node if self.assign_entry else ""

    @property
    def migration(self) -> MigrationRecord | None:
        return self.migration_entry.record if self.migration_entry else None

    @property
    def revision(self) -> int:
        return max(entry.revision for entry in
                   (self.spec_entry, self.status_entry, self.assign_entry, self.pointer_entry) if entry)


class World:
    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.feeds = {kind: Feed() for kind in ("vm", "node", "image", "migration", "event")}
        self._on_node: dict[str, set[str]] = defaultdict(set)
        self._of_image: dict[str, set[str]] = defaultdict(set)
        self._migrations_of_node: dict[str, set[str]] = defaultdict(set)
        cache.listen(self._changed)

    @property
    def revision(self) -> int:
        return self.cache.revision

    # ── VMs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def vm(self, uid: str) -> VmView | None:
        table = self.cache.table
        spec = table(keys.VM_SPEC).get(uid)
        if spec is None:
            return None
        pointer = table(keys.VM_MIGRATION).get(uid)
        migration = table(keys.MIGRATION).get(pointer.record.uid) if pointer else None
        return VmView(uid, spec, table(keys.VM_STATUS).get(uid), table(keys.VM_ASSIGN).get(uid), pointer, migration)

    def vms(self) -> Iterator[VmView]:
        """In order of creation: uids sort so."""
        for uid in sorted(self.cache.table(keys.VM_SPEC)):
            if view := self.vm(uid):
                yield view

    def vms_on(self, node: str) -> list[VmView]:
        """VMs whose owner is this node."""
        return [view for uid in sorted(self._on_node[node]) if (view := self.vm(uid))]

    def vms_of_image(self, image: str) -> list[VmView]:
        return [view for uid in sorted(self._of_image[image]) if (view := self.vm(uid))]

    def find_vm(self, ref: str) -> VmView:
        """By name, uid or unique prefix of the uid. Raises NotFound, BadField."""
        pointer = self.cache.table(keys.VM_NAME).get(ref)
        view = self.vm(pointer.record.uid if pointer else self._by_uid(keys.VM_SPEC, "vm", ref))
        if view is None:
            raise errors.NotFound("vm", ref)
        return view

    def tombstone(self, uid: str) -> Tombstone | None:
        entry = self.cache.table(keys.VM_GONE).get(uid)
        return entry.record if entry else None

    # ── other kinds ───────────────────────────────────────────────────────────────────────────────────────────────

    def nodes(self) -> list[NodeRecord]:
        table = self.cache.table(keys.NODE)
        return [table[name].record for name in sorted(table)]

    def node(self, name: str) -> NodeRecord | None:
        entry = self.cache.table(keys.NODE).get(name)
        return entry.record if entry else None

    def find_node(self, ref: str) -> Entry:
        table = self.cache.table(keys.NODE)
        if ref in table:
            return table[ref]
        if len(ref) >= PREFIX_LENGTH:
            found = [entry for entry in table.values() if entry.record.uid.startswith(ref)]
            if len(found) == 1:
                return found[0]
        raise errors.NotFound("node", ref)

    def find_image(self, ref: str) -> Entry:
        pointer = self.cache.table(keys.IMAGE_NAME).get(ref)
        entry = self.cache.table(keys.IMAGE).get(pointer.record.uid if pointer
                                                 else self._by_uid(keys.IMAGE, "image", ref))
        if entry is None:
            raise errors.NotFound("image", ref)
        return entry

    def image(self, uid: str) -> ImageRecord | None:
        entry = self.cache.table(keys.IMAGE).get(uid)
        return entry.record if entry else None

    def find_migration(self, ref: str) -> Entry:
        entry = self.cache.table(keys.MIGRATION).get(self._by_uid(keys.MIGRATION, "migration", ref))
        if entry is None:
            raise errors.NotFound("migration", ref)
        return entry

    def migration_entry(self, uid: str) -> Entry | None:
        return self.cache.table(keys.MIGRATION).get(uid)

    def migrations_of(self, node: str) -> list[MigrationRecord]:
        """In which the node has a part, finished ones that are still kept included."""
        table = self.cache.table(keys.MIGRATION)
        return [table[uid].record for uid in sorted(self._migrations_of_node[node]) if uid in table]

    def events(self) -> list[tuple[EventRecord, int]]:
        """With their revisions, in the order they happened."""
        entries = self.cache.table(keys.EVENT).values()
        return sorted(((entry.record, entry.revision) for entry in entries), key=lambda item: (item[1], item[0].uid))

    def _by_uid(self, prefix: str, kind: str, ref: str) -> str:
        table = self.cache.table(prefix)
        if ref in table:
            return ref
        found = [uid for uid in table if uid.startswith(ref)] if len(ref) >= PREFIX_LENGTH else []
        if len(found) > 1:
            raise errors.BadField(kind, f"{ref!r} begins the ids of {len(found)} {kind}s", "AMBIGUOUS_ID")
        return found[0] if found else ref

    # ── keeping up ────────────────────────────────────────────────────────────────────────────────────────────────

    def start_feeds(self) -> None:
        """History begins now: the cache has been filled."""
        for feed in self.feeds.values():
            feed.start(self.cache.revision)

    def _changed(self, changes: list[Change]) -> None:
        for change in changes:
            record = (change.new or change.old).record                     # type: ignore[union-attr]
            if change.prefix in VM_PARTS:
                self._index_vm(change)
                self.feeds["vm"].add(change.revision, change.id, self._vm_name(change))
            elif change.prefix == keys.NODE:
                self.feeds["node"].add(change.revision, change.id, change.id)
            elif change.prefix == keys.IMAGE:
                self.feeds["image"].add(change.revision, change.id, record.name)
            elif change.prefix == keys.MIGRATION:
                for node in (record.source, record.target):
                    (set.add if change.new else set.discard)(self._migrations_of_node[node], change.id)
                self.feeds["migration"].add(change.revision, change.id, record.vm_name)
            elif change.prefix == keys.EVENT and change.new:
                self.feeds["event"].add(change.revision, change.id, "")

    def _vm_name(self, change: Change) -> str:
        if change.prefix == keys.VM_SPEC:
            return (change.new or change.old).record.name                  # type: ignore[union-attr]
        spec = self.cache.table(keys.VM_SPEC).get(change.id)
        gone = self.tombstone(change.id)
        return spec.record.name if spec else gone.name if gone else ""

    def _index_vm(self, change: Change) -> None:
        index = {keys.VM_ASSIGN: (self._on_node, "node"), keys.VM_SPEC: (self._of_image, "spec")}.get(change.prefix)
        if index is None:
            return
        sets, attribute = index
        for entry, put in ((change.old, False), (change.new, True)):
            if entry:
                value = getattr(entry.record, attribute)
                key = value.image if attribute == "spec" else value
                (set.add if put else set.discard)(sets[key], change.id)
